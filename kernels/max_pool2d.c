// Maximum over size x size windows with stride size; remaining rows and columns are dropped. As in max_pool2d.cu:
//
//   forward   y[p,c,q,n] = max over i, j of x[p*size+i,c,q*size+j,n]; winner: i*size+j of the first maximum
//   gradient  first: gx = g at the winner;  all: gx = g wherever x equals y (Theano's rule).  0 elsewhere
//
// NaN is larger than any number, and equal to itself. x, gx (H,C,W,N); y, winner, g (P,C,Q,N): the images innermost, so
// that a window of all images is a few contiguous lines. Where images are few, the lines of several windows of a row
// are copied together first: a vector unit wants more numbers at a time. Output rows first <= p < last.
#ifndef REAL
#include "common.h"
#include <stdint.h>
#include <string.h>

// BLOCK: numbers whose loop has no rest, which a compiler may leave out of the vectors. The last block overlaps the one
// before; that changes nothing, for what is compared once more is not larger any more. LINE: numbers that are copied
// together where the images are fewer than a block.
enum { BLOCK = 32, LINE = 512 };
#define IN_BLOCKS(count, call)                                            \
    if ((count) < BLOCK) {                                                \
        const long at = 0, length = (count);                              \
        call;                                                             \
    } else                                                                \
        for (long n = 0; n < (count); n += BLOCK) {                       \
            const long at = smaller(n, (count) - BLOCK), length = BLOCK;  \
            call;                                                         \
        }

#define REAL float
#include "max_pool2d.c"
#undef REAL
#define REAL double
#include "max_pool2d.c"
#else

// `windows` lines of N numbers each.
INLINE void NAME(copy_lines)(const REAL *from, long apart, REAL *to, long to_apart, long windows, long N) {
    for (long q = 0; q < windows; ++q)
        for (long n = 0; n < N; ++n) to[q * to_apart + n] = from[q * apart + n];
}

INLINE void NAME(take_larger)(const REAL *restrict member, REAL *restrict best, uint8_t *restrict winner, uint8_t k,
                              long count) {
    for (long n = 0; n < count; ++n) {
        const int larger = (member[n] > best[n]) | ((member[n] != member[n]) & (best[n] == best[n]));
        best[n] = larger ? member[n] : best[n];
        winner[n] = larger ? k : winner[n];
    }
}

INLINE void NAME(give_winner)(const REAL *restrict g, const uint8_t *restrict winner, uint8_t k, REAL *restrict to,
                              long count) {
    for (long n = 0; n < count; ++n) {
        const REAL grad = g[n];  // read in any case, which clang does not do by itself
        to[n] = winner[n] == k ? grad : 0;
    }
}

INLINE void NAME(give_equal)(const REAL *restrict g, const REAL *restrict member, const REAL *restrict best,
                             REAL *restrict to, long count) {
    for (long n = 0; n < count; ++n) {
        const REAL grad = g[n];
        to[n] = (member[n] == best[n]) | ((member[n] != member[n]) & (best[n] != best[n])) ? grad : 0;
    }
}

void NAME(max_pool2d)(const REAL *x, REAL *y, uint8_t *winner, long C, long W, long N, long size, long first,
                      long last) {
    const long Q = W / size, together = N && N < BLOCK ? LINE / N : 1;
    for (long p = first; p < last; ++p)
        for (long c = 0; c < C; ++c)
            for (long q = 0; q < Q; q += together) {
                const long windows = smaller(together, Q - q), count = windows * N;
                REAL *const best = y + ((p * C + c) * Q + q) * N, line[LINE];
                uint8_t *const won = winner + ((p * C + c) * Q + q) * N;
                for (long k = 0; k < size * size; ++k) {
                    const REAL *member = x + (((p * size + k / size) * C + c) * W + q * size + k % size) * N;
                    if (N < BLOCK) {
                        NAME(copy_lines)(member, size * N, line, N, windows, N);
                        member = line;
                    }
                    if (k == 0) {
                        memcpy(best, member, count * sizeof(REAL));
                        memset(won, 0, count);
                    } else
                        IN_BLOCKS(count, NAME(take_larger)(member + at, best + at, won + at, (uint8_t)k, length))
                }
            }
}

void NAME(max_pool2d_grad)(const REAL *g, const REAL *x, const REAL *y, const uint8_t *winner, REAL *gx, long C, long W,
                           long N, long size, int all_ties, long first, long last) {
    const long Q = W / size, together = N && N < BLOCK ? LINE / N : 1;
    for (long p = first; p < last; ++p)
        for (long i = 0; i < size; ++i)
            for (long c = 0; c < C; ++c) {
                const long row = ((p * size + i) * C + c) * W * N;
                for (long q = 0; q < Q; q += together)
                    for (long j = 0; j < size; ++j) {
                        const long windows = smaller(together, Q - q), count = windows * N;
                        const long window = ((p * C + c) * Q + q) * N, place = row + (q * size + j) * N;
                        const REAL *const grad = g + window, *const best = y + window, *member = x + place;
                        const uint8_t *const won = winner + window, k = (uint8_t)(i * size + j);
                        REAL members[LINE], line[LINE], *const to = N < BLOCK ? line : gx + place;
                        if (all_ties) {
                            if (N < BLOCK) {
                                NAME(copy_lines)(member, size * N, members, N, windows, N);
                                member = members;
                            }
                            IN_BLOCKS(count, NAME(give_equal)(grad + at, member + at, best + at, to + at, length))
                        } else
                            IN_BLOCKS(count, NAME(give_winner)(grad + at, won + at, k, to + at, length))
                        if (N < BLOCK) NAME(copy_lines)(line, N, gx + place, size * N, windows, N);
                    }
                memset(gx + row + Q * size * N, 0, (W - Q * size) * N * sizeof(REAL));
            }
}
#endif
