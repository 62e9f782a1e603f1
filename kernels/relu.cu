// Rectified linear unit, on its own where it is not part of a convolution or an affine map.
//
//   forward   y  = max(x, 0)
//   gradient  gx = 0 where y <= 0, else g: of NaN too, which is not 0 or less
//
// Any shape, a thread 4 elements, so that several reads are under way at once. Source: Glorot, Bordes & Bengio, Deep
// sparse rectifier neural networks (2011).
#include "common.cuh"

constexpr int THREADS = 256, PER_THREAD = 4;

template <typename T>
__global__ void __launch_bounds__(THREADS) relu(const T *__restrict__ x, T *__restrict__ y, long long count) {
    const long long first = (long long)blockIdx.x * THREADS * PER_THREAD + threadIdx.x;
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const long long i = first + k * THREADS;
        if (i < count) y[i] = rectified(x[i]);
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    relu_grad(const T *__restrict__ g, const T *__restrict__ y, T *__restrict__ gx, long long count) {
    const long long first = (long long)blockIdx.x * THREADS * PER_THREAD + threadIdx.x;
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const long long i = first + k * THREADS;
        if (i < count) gx[i] = y[i] <= 0 ? T(0) : g[i];
    }
}
