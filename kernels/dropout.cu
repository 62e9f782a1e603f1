// Inverted dropout from a counter, so that the gradient recomputes the mask instead of keeping it.
//
//   y[i] = x[i] / (1 - rate) where word(i) < threshold, else 0;  threshold = round((1 - rate) 2^32)
//   word(i) = word i % 4 of Philox4x32-10 with counter (i / 4, layer, step, 0) and the seed as key
//
// It is linear, and its own gradient. x, y any shape, i in C order; step (1,) on the device. A thread a Philox block
// of 4 elements. Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011); Srivastava et al. (2014).
#include "common.cuh"

__device__ __forceinline__ void philox(unsigned (&counter)[4], unsigned key0, unsigned key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned high0 = __umulhi(0xD2511F53u, counter[0]), low0 = 0xD2511F53u * counter[0];
        const unsigned high1 = __umulhi(0xCD9E8D57u, counter[2]), low1 = 0xCD9E8D57u * counter[2];
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
    dropout(const T *__restrict__ x, T *__restrict__ y, long long count, const unsigned *__restrict__ step,
            unsigned layer, unsigned key0, unsigned key1, unsigned long long threshold, T scale) {
    const long long block = blockIdx.x * 256LL + threadIdx.x;
    if (4 * block >= count) return;
    unsigned words[4] = {(unsigned)block, layer, *step, 0};
    philox(words, key0, key1);
#pragma unroll
    for (int j = 0; j < 4; ++j)
        if (4 * block + j < count) y[4 * block + j] = words[j] < threshold ? x[4 * block + j] * scale : T(0);
}
