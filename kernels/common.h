// What the C sources share. Each includes itself twice, with REAL float and double; NAME(f) is f_float, then f_double.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, REAL)
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#define NO_UNROLL _Pragma("GCC unroll 1")
#endif

#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif

// Of a convolution: input (H,C,W,N), output (P,O,Q,N), filters (O,C,kh,kw), rows and columns of zeros before the input.
typedef struct {
    long H, C, W, N, O, P, Q, kh, kw, top, left;
} Sizes;

enum { RUN = 32 };  // channels of a convolution that are added up by themselves
enum { CACHE_LINE = 64 };  // bytes

INLINE long smaller(long a, long b) { return a < b ? a : b; }
INLINE long larger(long a, long b) { return a > b ? a : b; }

// Memory that begins at a cache line, `bytes` zeros; NULL where there is none.
static inline void *cleared(long bytes) {
    bytes = larger(1, (bytes + CACHE_LINE - 1) / CACHE_LINE) * CACHE_LINE;
    void *const memory = aligned_alloc(CACHE_LINE, bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

// Asks memory for `bytes` that are read soon, or written. It foresees a few lines of an array by itself, not dozens.
INLINE void fetch(const void *first, long bytes, int written) {
    for (long k = 0; k < bytes; k += CACHE_LINE)
        if (written)
            __builtin_prefetch((const char *)first + k, 1);
        else
            __builtin_prefetch((const char *)first + k);
}
