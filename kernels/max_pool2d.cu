// Maximum over size x size windows with stride size; remaining rows and columns are dropped.
//
//   forward   y[n,c,p,q] = max over i, j of x[n,c,p*size+i,q*size+j]; winner: i*size+j of the first maximum
//   gradient  first: gx = g at the winner;  all: gx = g wherever x equals y (Theano's rule).  0 elsewhere
//
// NaN is larger than any number, and equal to itself.
// x, gx (N,C,H,W); y, winner, g (N,C,P,Q) with P = H / size, Q = W / size; planes = N C. A block takes blockDim.y
// planes, a row of 32 threads the windows of one. The gradient goes over ceil(H/size) x ceil(W/size) windows, so that
// the dropped remainder gets its zeros. Source: Theano's MaxPoolGrad for the rule `all`.
#include "common.cuh"

template <typename T>
__global__ void __launch_bounds__(256, 1)
    max_pool2d(const T *__restrict__ x, T *__restrict__ y, unsigned char *__restrict__ winner, long long planes, int H,
               int W, int size) {
    const long long plane = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (plane >= planes) return;
    const int P = H / size, Q = W / size;
    x += plane * H * W;
    for (int window = threadIdx.x; window < P * Q; window += 32) {
        const T *const corner = x + window / Q * size * W + window % Q * size;
        T best = corner[0];
        int position = 0;
        for (int i = 0; i < size; ++i)
            for (int j = 0; j < size; ++j) {
                const T value = corner[i * W + j];
                if (value > best || (value != value && best == best)) best = value, position = i * size + j;
            }
        y[plane * P * Q + window] = best;
        winner[plane * P * Q + window] = position;
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
    max_pool2d_grad(const T *__restrict__ g, const T *__restrict__ x, const T *__restrict__ y,
                    const unsigned char *__restrict__ winner, T *__restrict__ gx, long long planes, int H, int W,
                    int size, int all_ties) {
    const long long plane = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (plane >= planes) return;
    const int P = H / size, Q = W / size, across = (W + size - 1) / size, windows = (H + size - 1) / size * across;
    x += plane * H * W;
    gx += plane * H * W;
    for (int window = threadIdx.x; window < windows; window += 32) {
        const int p = window / across, q = window % across;
        const bool kept = p < P && q < Q;
        const long long at = plane * P * Q + (kept ? p * Q + q : 0);
        const T grad = kept ? g[at] : T(0), best = kept && all_ties ? y[at] : T(0);
        const int won = kept && !all_ties ? winner[at] : 0;
        for (int i = 0; i < size && p * size + i < H; ++i)
            for (int j = 0; j < size && q * size + j < W; ++j) {
                const int to = (p * size + i) * W + q * size + j;
                const bool chosen =
                    all_ties ? x[to] == best || (x[to] != x[to] && best != best) : i * size + j == won;
                gx[to] = chosen ? grad : T(0);
            }
    }
}
