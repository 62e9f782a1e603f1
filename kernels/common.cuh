// What several kernels share. Only what NVRTC has built in is used: no header is included.
#pragma once

// Two and four neighbours, read from or written to memory at once.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
    T v[2];
};
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
    T v[4];
};

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// max(x, 0) that keeps a NaN, so that a diverged network shows it.
template <typename T>
__device__ __forceinline__ T rectified(T x) {
    return x <= 0 ? T(0) : x;
}

// *target = valid ? *source : 0, target in shared memory; there after copies_landed(). From sm_80 on the copy runs
// beside the arithmetic and needs no register; before that it is a load and a store. source must be an address that
// may be formed, also where it is not read.
template <typename T>
__device__ __forceinline__ void copy_async(T *target, const T *source, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared(target)),
                 "l"(source), "n"(sizeof(T)), "r"(valid ? (unsigned)sizeof(T) : 0u)
                 : "memory");
#else
    *target = valid ? *source : T(0);
#endif
}

// The calling thread's copies are done; a __syncthreads() after it makes all threads' copies visible.
__device__ __forceinline__ void copies_landed() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Sum of one value per thread in the same order every time; valid in thread 0. blockDim.x is a power of two, scratch
// holds as many values.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T *scratch) {
    const int thread = threadIdx.x;
    scratch[thread] = value;
    for (int half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (thread < half) scratch[thread] += scratch[thread + half];
    }
    return scratch[thread];
}

// What a sum gets before it is stored: nothing, the bias, max(., 0), the bias and then max(., 0), or a ReLU's mask.
enum Epilogue { PLAIN = 0, BIAS = 1, RELU = 2, MASK = 4 };

template <typename T>
__device__ __forceinline__ T finished(T sum, const T *bias, int unit, int epilogue) {
    if (epilogue & BIAS) sum += bias[unit];
    return epilogue & RELU ? rectified(sum) : sum;
}
