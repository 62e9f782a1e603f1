// Affine map and its gradients: three matrix products of one kernel.
//
//   forward         y  = x w + b, then max(., 0) if asked    A = x            B = w
//   input gradient  gx = g w^T                               A = g            B = w^T
//   weight gradient gw = x^T g                               A = x^T          B = g
//
// x (N,D), w (D,U), b (U,), y and g (N,U). product: out (M,N) = A (M,K) B (K,N); A lies in memory as (K,M) where
// A_TRANSPOSED, B as (N,K) where B_TRANSPOSED. A block of 256 threads computes a 64 x 64 tile over `depth` of the K
// terms, a thread 4 x 4 of it; slices of 32 terms (of double 16) lie in shared memory, the next one copied while this one is
// multiplied. M and N are small here, so K is split over gridDim.z blocks and sum_parts (reduce.cu) adds the parts in
// order; unsplit, bias and ReLU are applied at once.
//
// Tiles in shared memory and registers as in Volkov & Demmel, Benchmarking GPUs to tune dense linear algebra (2008).
#include "common.cuh"

constexpr int TILE = 64, PITCH = TILE + 4, THREADS = 256;

template <typename T, bool A_TRANSPOSED, bool B_TRANSPOSED>
__global__ void __launch_bounds__(THREADS)
    product(const T *__restrict__ a, const T *__restrict__ b, const T *__restrict__ bias, T *__restrict__ out, int M,
            int N, int K, int depth, int epilogue) {
    constexpr int SLICE = 128 / sizeof(T);
    __shared__ __align__(32) T a_slice[2][SLICE][PITCH];
    __shared__ __align__(32) T b_slice[2][SLICE][PITCH];
    const int thread = threadIdx.x, first_row = blockIdx.x * TILE, first_column = blockIdx.y * TILE;
    const int first = blockIdx.z * depth, last = min(K, first + depth);

    auto stage = [&](int k0, int buffer) {
        for (int i = thread; i < TILE * SLICE; i += THREADS) {
            const int m = A_TRANSPOSED ? i % TILE : i / SLICE, k = k0 + (A_TRANSPOSED ? i / TILE : i % SLICE);
            const bool inside = first_row + m < M && k < last;
            const long long at = A_TRANSPOSED ? (long long)k * M + first_row + m : (long long)(first_row + m) * K + k;
            copy_async(&a_slice[buffer][k - k0][m], a + (inside ? at : 0), inside);
        }
        for (int i = thread; i < TILE * SLICE; i += THREADS) {
            const int n = B_TRANSPOSED ? i / SLICE : i % TILE, k = k0 + (B_TRANSPOSED ? i % SLICE : i / TILE);
            const bool inside = first_column + n < N && k < last;
            const long long at =
                B_TRANSPOSED ? (long long)(first_column + n) * K + k : (long long)k * N + first_column + n;
            copy_async(&b_slice[buffer][k - k0][n], b + (inside ? at : 0), inside);
        }
    };

    const int row = thread / (TILE / 4) * 4, column = thread % (TILE / 4) * 4;
    T sums[4][4] = {};
    stage(first, 0);
    for (int k0 = first, buffer = 0; k0 < last; k0 += SLICE, buffer ^= 1) {
        copies_landed();
        __syncthreads();
        if (k0 + SLICE < last) stage(k0 + SLICE, buffer ^ 1);
#pragma unroll
        for (int k = 0; k < SLICE; ++k) {
            const Quad<T> u = *reinterpret_cast<const Quad<T> *>(&a_slice[buffer][k][row]);
            const Quad<T> v = *reinterpret_cast<const Quad<T> *>(&b_slice[buffer][k][column]);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] += u.v[i] * v.v[j];
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int m = first_row + row + i, n = first_column + column + j;
            if (m < M && n < N)
                out[((long long)blockIdx.z * M + m) * N + n] = finished(sums[i][j], bias, n, epilogue);
        }
}
