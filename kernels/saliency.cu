// The end of the batched saliency gradient: the input gradient of a first convolution with one channel, written
// straight to N maps, and what each map holds.
//
//   map[n,r,s] = sum_{o,i,j} w[o,0,i,j] g[n,o,r-i+top,s-j+left], g zero outside
//   summary[n] = maximum, minimum, sum and number of exact zeros of map n
//
// g (N,O,P,Q), w (O,1,kh,kw), maps (N,H,W), summary (N,4). A block an image: its threads stride over the pixels, a
// tree at the end. The work is reading g once; it stays in the first-level cache for the taps that share it.
// Source: Algorithm 1, step 2 of the paper.
#include "common.cuh"

template <typename T>
__device__ __forceinline__ T larger(T a, T b) {
    return a > b || a != a ? a : b;
}

template <typename T>
__global__ void __launch_bounds__(256, 1)
    saliency_end(const T *__restrict__ g, const T *__restrict__ w, T *__restrict__ maps, T *__restrict__ summary, int O,
                 int P, int Q, int H, int W, int kernel_height, int kernel_width, int top, int left) {
    __shared__ T largest[256], smallest[256], sums[256], zeros[256];
    const int thread = threadIdx.x;
    const long long n = blockIdx.x;
    g += n * O * P * Q;
    maps += n * H * W;
    const T lowest = logarithm(T(0));
    T high = lowest, low_negated = lowest, total = 0, count = 0;
    for (int pixel = thread; pixel < H * W; pixel += 256) {
        const int row = pixel / W + top, column = pixel % W + left;
        T sum = 0;
        for (int o = 0; o < O; ++o)
            for (int i = 0; i < kernel_height; ++i) {
                if (row - i < 0 || row - i >= P) continue;
                const T *const from = g + ((long long)o * P + row - i) * Q + column;
                const T *const taps = w + (o * kernel_height + i) * kernel_width;
                for (int j = 0; j < kernel_width; ++j)
                    if (column - j >= 0 && column - j < Q) sum += taps[j] * from[-j];
            }
        maps[pixel] = sum;
        high = larger(sum, high);
        low_negated = larger(-sum, low_negated);
        total += sum;
        count += sum == 0;
    }
    largest[thread] = high;
    smallest[thread] = low_negated;
    sums[thread] = total;
    zeros[thread] = count;
    for (int half = 128; half; half /= 2) {
        __syncthreads();
        if (thread >= half) continue;
        largest[thread] = larger(largest[thread], largest[thread + half]);
        smallest[thread] = larger(smallest[thread], smallest[thread + half]);
        sums[thread] += sums[thread + half];
        zeros[thread] += zeros[thread + half];
    }
    if (thread) return;
    summary[4 * n] = largest[0];
    summary[4 * n + 1] = -smallest[0];
    summary[4 * n + 2] = sums[0];
    summary[4 * n + 3] = zeros[0];
}
