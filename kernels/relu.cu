// Rectified linear unit, on its own where it is not part of a convolution or an affine map.
//
//   forward   y  = max(x, 0)
//   gradient  gx = g where y > 0, else 0
//
// Any shape, a thread an element. Source: Glorot, Bordes & Bengio, Deep sparse rectifier neural networks (2011).
#include "common.cuh"

template <typename T>
__global__ void __launch_bounds__(256) relu(const T *__restrict__ x, T *__restrict__ y, long long count) {
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < count) y[i] = rectified(x[i]);
}

template <typename T>
__global__ void __launch_bounds__(256)
    relu_grad(const T *__restrict__ g, const T *__restrict__ y, T *__restrict__ gx, long long count) {
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < count) gx[i] = y[i] > 0 ? g[i] : T(0);
}
