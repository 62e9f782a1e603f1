// Kernels for the emulator's own tests: right ones, and some with a planted defect that a check has to find.

// y = factor x, element by element. The plainest right kernel, a template.
template <typename T>
__global__ void scale(const T *__restrict__ x, T *__restrict__ y, T factor, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}

// y = x reversed within the block, through static shared memory.
constexpr int ROW = 256;
extern "C" __global__ void __launch_bounds__(ROW, 1) reverse(const float *x, float *y) {
    __shared__ float row[ROW];
    row[threadIdx.x] = x[threadIdx.x];
#ifndef WITHOUT_BARRIER
    __syncthreads();
#endif
    y[threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
}

// Sums of the rows of x (gridDim.x, columns): warps by shuffles, the block through dynamic shared memory.
template <typename T>
__global__ void row_sums(const T *x, T *sums, int columns) {
    extern __shared__ __align__(16) unsigned char memory[];
    T *warp_sums = reinterpret_cast<T *>(memory);
    T sum = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += x[blockIdx.x * columns + i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0;
        for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += warp_sums[warp];
        sums[blockIdx.x] = sum;
    }
}

// What each shuffle hands to each of 32 lanes; `width` cuts the warp into segments.
extern "C" __global__ void shuffles(const int *x, int *indexed, int *up, int *down, int *exclusive_or, int width) {
    const int lane = threadIdx.x;
    indexed[lane] = __shfl_sync(0xffffffffu, x[lane], 3, width);
    up[lane] = __shfl_up_sync(0xffffffffu, x[lane], 2, width);
    down[lane] = __shfl_down_sync(0xffffffffu, x[lane], 5, width);
    exclusive_or[lane] = __shfl_xor_sync(0xffffffffu, x[lane], 1, width);
}

// Lanes below `half` meet `extra` more times than the others before the whole warp exchanges values.
extern "C" __global__ void uneven_history(const double *x, double *y, int half, int extra) {
    const int lane = threadIdx.x;
    if (lane < half)
        for (int i = 0; i < extra; i++) __shfl_sync((1u << half) - 1, x[lane], 0);
    y[lane] = __shfl_xor_sync(0xffffffffu, x[lane], 31);
}

// Votes on x != 0. A warp of fewer than 32 threads votes with the lanes it has.
extern "C" __global__ void votes(const int *x, unsigned *ballot, int *any, int *all) {
    ballot[threadIdx.x] = __ballot_sync(0xffffffffu, x[threadIdx.x]);
    any[threadIdx.x] = __any_sync(0xffffffffu, x[threadIdx.x]);
    all[threadIdx.x] = __all_sync(0xffffffffu, x[threadIdx.x]);
}

// y = x with lanes reversed, through shared memory of one warp.
extern "C" __global__ void reverse_warp(const float *x, float *y) {
    __shared__ float row[32];
    row[threadIdx.x] = x[threadIdx.x];
#ifndef WITHOUT_BARRIER
    __syncwarp();
#endif
    y[threadIdx.x] = row[31 - threadIdx.x];
}

// The order of threads is not the order of memory: lanes met in a shuffle, but nothing orders their shared writes.
extern "C" __global__ void shuffle_is_no_barrier(const float *x, float *y) {
    __shared__ float row[32];
    row[threadIdx.x] = x[threadIdx.x];
    const float other = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 31);
    y[threadIdx.x] = row[31 - threadIdx.x] - other;
}

// Two stages without a barrier between: warps write after some shuffles, and read after some.
extern "C" __global__ void drifting_warps(const float *x, float *y) {
    __shared__ float slot[8];
    float value = x[threadIdx.x];
    for (int i = 0; i < 3; i++) value = __shfl_xor_sync(0xffffffffu, value, 1);
    if (threadIdx.x % 32 == 0) slot[threadIdx.x / 32] = value;
    for (int i = 0; i < 3; i++) value = __shfl_xor_sync(0xffffffffu, value, 1);
    y[threadIdx.x] = slot[(threadIdx.x / 32 + 1) % 8];
}

extern "C" __global__ void divergent_barrier(float *y) {
    if (threadIdx.x < 7) __syncthreads();
    y[threadIdx.x] = 1;
}

// Both branches have a barrier, but not the same.
extern "C" __global__ void two_barriers(float *y) {
    if (threadIdx.x < 7) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = 1;
}

extern "C" __global__ void divergent_shuffle(float *y) {
    if (threadIdx.x % 2) y[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0);
    __syncthreads();
}

extern "C" __global__ void two_masks(float *y) {
    y[threadIdx.x] = __shfl_sync(threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffffffffu, 1.0f, 0);
    if (threadIdx.x % 32 < 16) __syncthreads();
}

extern "C" __global__ void outside_own_mask(float *y) { y[threadIdx.x] = __shfl_sync(1u, 1.0f, 0); }

// What shared memory that nobody wrote holds, and a shuffle from a lane that no thread has.
extern "C" __global__ void unwritten(float *from_static, float *from_dynamic, float *from_no_lane) {
    __shared__ float never[32];
    extern __shared__ float never_either[];
    from_static[threadIdx.x] = never[threadIdx.x];
    from_dynamic[threadIdx.x] = never_either[threadIdx.x];
    from_no_lane[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.0f, 8);
}

// The block that runs last wins: the result depends on the order of the blocks.
extern "C" __global__ void last_block(int *winner) { *winner = blockIdx.x; }

extern "C" __global__ void count(int *total, unsigned *total_unsigned) {
    atomicAdd(total, 1);
    atomicAdd(total_unsigned, 2u);
}

// Where each thread of a 3-d launch stands, 12 numbers each.
extern "C" __global__ void positions(unsigned *y) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned *row = y + 12 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    const unsigned values[12] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z,
                                 blockDim.x,  blockDim.y,  blockDim.z,  gridDim.x,  gridDim.y,  gridDim.z};
    for (int i = 0; i < 12; i++) row[i] = values[i];
}

// Overruns by `beyond` elements. What the compiler no longer knows to be an array, as in a device function, is left to
// AddressSanitizer.
extern "C" __global__ void static_overrun(float *y, int beyond) {
    __shared__ float row[64];
    row[threadIdx.x + beyond] = 1;
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x];
}
extern "C" __global__ void static_overrun_by_pointer(float *y, int beyond) {
    __shared__ float row[64];
    float *const volatile start = row;
    start[threadIdx.x + beyond] = 1;
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x];
}
extern "C" __global__ void dynamic_overrun(float *y, int beyond) {
    extern __shared__ float row[];
    row[threadIdx.x + beyond] = 1;
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x];
}
extern "C" __global__ void global_overrun(float *y, int beyond) { y[threadIdx.x + beyond] = 1; }
extern "C" __global__ void misaligned(const float *x, float *y, int offset) {
    y[threadIdx.x] = reinterpret_cast<const float4 *>(x + offset)->x;
}

extern "C" __global__ void vectors(const float4 *x, double2 *y, const unsigned char *bytes, long long step, bool flag) {
    const float4 v = x[threadIdx.x];
    y[threadIdx.x] = make_double2(v.x + v.y, flag ? double(step) : double(bytes[threadIdx.x]));
}

// A struct with a hole between its fields, by value.
struct Fields {
    int first;
    double second;
    unsigned char third;
};
extern "C" __global__ void fields(double *y, Fields s) {
    y[0] = s.first;
    y[1] = s.second;
    y[2] = s.third;
}

// The intrinsics, each on x and a constant.
extern "C" __global__ void intrinsics(const float *x, const unsigned *u, float *of_floats, unsigned *of_integers, int n) {
    const int i = threadIdx.x;
    of_floats[i] = max(x[i], 0.5f);
    of_floats[n + i] = min(x[i], 0.5f);
    of_floats[2 * n + i] = fmaf(x[i], x[i], -1.0f);
    of_floats[3 * n + i] = __uint_as_float(__float_as_uint(x[i]) ^ 0x80000000u);
    of_floats[4 * n + i] = exp(__ldg(x + i));  // the float function, as in CUDA
    of_integers[i] = __umulhi(u[i], 0xD2511F53u);
    of_integers[n + i] = max(u[i], 7u);
    of_integers[2 * n + i] = min(int(u[i] >> 1), 7);
}
