// The CUDA C++ that the kernels are written in, for g++. Kernels see CUDA's own names; threads are scheduled by the
// runtime beside this file. What CUDA has and this file lacks (PTX, tensor cores, cp.async, fast-math intrinsics, atomics
// on floats) does not compile. Included before a .cu file, which stays as it is.
#pragma once
#include <math.h>  // not <cmath>: exp(float) in the global namespace has to be the float function, as in CUDA

#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "runtime.h"

#define __CUDA_SHIM__ 1
#define __global__ [[maybe_unused]] static
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// The section is how the emulator finds these variables to poison them; `used` keeps the compiler from concluding that
// a variable nobody writes is 0.
#define __shared__ static __attribute__((section("cuda_shared"), used))

[[maybe_unused]] static const uint3 &threadIdx = cuda_on_cpu::cuda_on_cpu_position.thread;
[[maybe_unused]] static const uint3 &blockIdx = cuda_on_cpu::cuda_on_cpu_position.block;
[[maybe_unused]] static const dim3 &blockDim = cuda_on_cpu::cuda_on_cpu_position.block_size;
[[maybe_unused]] static const dim3 &gridDim = cuda_on_cpu::cuda_on_cpu_position.grid_size;
constexpr int warpSize = 32;

// Vector types: pairs and quadruples are aligned as one word, up to 16 bytes.

#define CUDA_VECTOR_TYPES(COMPONENT, NAME)                                                              \
    struct alignas(2 * sizeof(COMPONENT)) NAME##2 {                                                     \
        using component = COMPONENT;                                                                    \
        COMPONENT x, y;                                                                                 \
    };                                                                                                  \
    struct alignas(4 * sizeof(COMPONENT) < 16 ? 4 * sizeof(COMPONENT) : 16) NAME##4 {                   \
        using component = COMPONENT;                                                                    \
        COMPONENT x, y, z, w;                                                                           \
    };                                                                                                  \
    inline NAME##2 make_##NAME##2(COMPONENT x, COMPONENT y) { return {x, y}; }                          \
    inline NAME##4 make_##NAME##4(COMPONENT x, COMPONENT y, COMPONENT z, COMPONENT w) { return {x, y, z, w}; }
CUDA_VECTOR_TYPES(float, float)
CUDA_VECTOR_TYPES(double, double)
CUDA_VECTOR_TYPES(int, int)
CUDA_VECTOR_TYPES(unsigned, uint)
CUDA_VECTOR_TYPES(unsigned char, uchar)
#undef CUDA_VECTOR_TYPES

// Arithmetic. Of a number and a NaN, max and min take the number, as fmax and fmin do.

template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return fmax(T(a), T(b));
    else return T(a) < T(b) ? T(b) : T(a);
}
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return fmin(T(a), T(b));
    else return T(b) < T(a) ? T(b) : T(a);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

namespace cuda_on_cpu {
template <class To, class From>
To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}
}  // namespace cuda_on_cpu
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bits_as<float>(x); }

// Memory. Atomics are for integers: sums of floats in no fixed order have no place in a deterministic engine.

template <class T>
T __ldg(const T *address) {
    return *address;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline int atomicAdd(int *address, int value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned *address, unsigned value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }

// Rendezvous. The caller's file and line go along: a deadlock report names them.

inline void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_on_cpu::cuda_on_cpu_block_barrier({"__syncthreads", file, line});
}
inline void __syncwarp(unsigned mask = ~0u, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_on_cpu::cuda_on_cpu_warp_collective({cuda_on_cpu::Collective::sync, mask, 0, 0}, {"__syncwarp", file, line});
}

namespace cuda_on_cpu {
inline unsigned vote(unsigned mask, int predicate, Site site) {
    return unsigned(cuda_on_cpu_warp_collective({Collective::vote, mask, predicate != 0, 0}, site));
}

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a shuffle moves 4 or 8 bytes");
    using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    const uint64_t sent = bits_as<Word>(value);
    return bits_as<T>(Word(cuda_on_cpu_warp_collective({Collective::shuffle, mask, sent, unsigned(source)}, site)));
}
}  // namespace cuda_on_cpu

inline unsigned __ballot_sync(unsigned mask, int predicate, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    return cuda_on_cpu::vote(mask, predicate, {"__ballot_sync", file, line});
}
inline int __any_sync(unsigned mask, int predicate, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    return cuda_on_cpu::vote(mask, predicate, {"__any_sync", file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    return cuda_on_cpu::vote(mask, !predicate, {"__all_sync", file, line}) == 0;
}

// A warp is cut into segments of `width` lanes. A source outside the lane's segment is the lane itself.

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, const char *file = __builtin_FILE(),
              int line = __builtin_LINE()) {
    const int lane = cuda_on_cpu::cuda_on_cpu_lane(), first = lane & -width;
    return cuda_on_cpu::shuffle(mask, value, first + (source & (width - 1)), {"__shfl_sync", file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, const char *file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
    const int lane = cuda_on_cpu::cuda_on_cpu_lane(), first = lane & -width, source = lane - int(delta);
    return cuda_on_cpu::shuffle(mask, value, source < first ? lane : source, {"__shfl_up_sync", file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, const char *file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
    const int lane = cuda_on_cpu::cuda_on_cpu_lane(), end = (lane & -width) + width, source = lane + int(delta);
    return cuda_on_cpu::shuffle(mask, value, source < end ? source : lane, {"__shfl_down_sync", file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_bits, int width = warpSize, const char *file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
    const int lane = cuda_on_cpu::cuda_on_cpu_lane(), end = (lane & -width) + width, source = lane ^ lane_bits;
    return cuda_on_cpu::shuffle(mask, value, source < end ? source : lane, {"__shfl_xor_sync", file, line});
}

// What the emulator asks of a kernel, through functions that it adds to the source.

#define CUDA_ON_CPU_ENTRY extern "C" __attribute__((visibility("default")))

namespace cuda_on_cpu {

template <class T, class = void>
struct Component {
    using type = T;
};
template <class T>
struct Component<T, std::void_t<typename T::component>> {
    using type = typename T::component;
};

// NumPy's letter for the kind of number T is: b, u, i, f, or ? for what no array holds.
template <class T>
constexpr char kind() {
    if (std::is_same_v<T, bool>) return 'b';
    if (std::is_floating_point_v<T>) return 'f';
    if (!std::is_integral_v<T>) return '?';
    return std::is_signed_v<T> ? 'i' : 'u';
}

// A parameter as text: kind and bytes of a value, or of the components behind a pointer, then '.' or '*'. A struct by
// value is of kind V.
template <class Parameter>
std::string description() {
    constexpr bool pointer = std::is_pointer_v<Parameter>, structure = std::is_class_v<Parameter>;
    static_assert(!structure || std::is_trivially_copyable_v<Parameter>, "a launch copies a struct byte by byte");
    using T = std::remove_cv_t<std::remove_pointer_t<Parameter>>;
    using Number = std::conditional_t<pointer, typename Component<T>::type, T>;
    return (structure ? 'V' : kind<Number>()) + std::to_string(sizeof(Number)) + (pointer ? "* " : ". ");
}
template <class... Parameters>
const char *signature(void (*)(Parameters...)) {
    static const std::string text = (std::string() + ... + description<Parameters>());
    return text.c_str();
}

template <class... Parameters, size_t... I>
void invoke(void (*kernel)(Parameters...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<Parameters *>(arguments[I])...);
}
template <class... Parameters>
void invoke(void (*kernel)(Parameters...), void **arguments) {
    invoke(kernel, arguments, std::index_sequence_for<Parameters...>());
}

template <class... Parameters>
const void *address(void (*kernel)(Parameters...)) {
    return reinterpret_cast<const void *>(kernel);
}

}  // namespace cuda_on_cpu
