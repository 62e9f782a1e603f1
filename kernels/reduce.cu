// Sums in a fixed order.
//
//   sum_parts  out[i] = sum_s parts[s,i] (+ bias[i mod U], then max(., 0) if asked); parts (S,n), out (n,), bias (U,)
//              32 neighbouring elements a block, one per threadIdx.x; row threadIdx.y sums parts y, y+8, ..., and
//              row 0 adds up the 8 rows. The second half of every product that is split over blocks.
//   bias_grad  parts[s,c] = sum_{n,p} g[n,c,p] over the images n of part s; g (N,C,pixels), parts (S,C). A block a
//              channel and part, its threads stride over (n,p), a tree at the end. blockDim.x is a power of two, at
//              most 1024.
#include "common.cuh"

constexpr int ELEMENTS = 32, ROWS = 8;

template <typename T>
__global__ void __launch_bounds__(ELEMENTS *ROWS)
    sum_parts(const T *__restrict__ parts, const T *__restrict__ bias, T *__restrict__ out, long long n, int S, int U,
              int epilogue) {
    __shared__ T rows[ROWS][ELEMENTS];
    const int column = threadIdx.x, row = threadIdx.y;
    const long long i = (long long)blockIdx.x * ELEMENTS + column;
    T sum = 0;
    if (i < n)
#pragma unroll 4
        for (int s = row; s < S; s += ROWS) sum += parts[s * n + i];
    rows[row][column] = sum;
    __syncthreads();
    if (row || i >= n) return;
#pragma unroll
    for (int r = 1; r < ROWS; ++r) sum += rows[r][column];
    out[i] = finished(sum, bias, (int)(i % U), epilogue);
}

template <typename T>
__global__ void __launch_bounds__(1024)
    bias_grad(const T *__restrict__ g, T *__restrict__ parts, int N, int C, int pixels) {
    __shared__ T scratch[1024];
    const int c = blockIdx.x, s = blockIdx.y, threads = blockDim.x;
    const int images_on = threads / pixels, pixels_on = threads % pixels;
    const int first = (long long)N * s / gridDim.y, last = (long long)N * (s + 1) / gridDim.y;
    T sum = 0;
    for (int n = first + threadIdx.x / pixels, p = threadIdx.x % pixels; n < last;) {
        sum += g[((long long)n * C + c) * pixels + p];
        n += images_on;
        p += pixels_on;
        if (p >= pixels) p -= pixels, ++n;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) parts[(long long)s * C + c] = sum;
}
