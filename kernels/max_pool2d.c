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

#include "real.h"

// The lines of the windows first <= t < last of a row, channel by channel, W / size of each, side by side; and back.
INLINE void NAME(gather)(const REAL *x, long W, long N, long size, long first, long last, REAL *lines) {
    const long Q = W / size;
    for (long t = first; t < last;) {
        const REAL *from = x + (t / Q * W + t % Q * size) * N;
        for (const long end = smaller(last, (t / Q + 1) * Q); t < end; ++t, from += size * N, lines += N)
            for (long n = 0; n < N; ++n) lines[n] = from[n];
    }
}

INLINE void NAME(scatter)(const REAL *lines, long W, long N, long size, long first, long last, REAL *x) {
    const long Q = W / size;
    for (long t = first; t < last;) {
        REAL *to = x + (t / Q * W + t % Q * size) * N;
        for (const long end = smaller(last, (t / Q + 1) * Q); t < end; ++t, to += size * N, lines += N)
            for (long n = 0; n < N; ++n) to[n] = lines[n];
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
        for (long t = 0; t < C * Q; t += together) {
            const long end = smaller(C * Q, t + together), count = (end - t) * N;
            REAL *const best = y + (p * C * Q + t) * N, lines[LINE];
            uint8_t *const won = winner + (p * C * Q + t) * N;
            for (long k = 0; k < size * size; ++k) {
                const REAL *const row = x + ((p * size + k / size) * C * W + k % size) * N;
                const REAL *member = row + (t / Q * W + t % Q * size) * N;
                if (N < BLOCK) {
                    NAME(gather)(row, W, N, size, t, end, lines);
                    member = lines;
                }
                if (k == 0) {
                    memcpy(best, member, count * sizeof(REAL));
                    memset(won, 0, count);
                } else
                    IN_BLOCKS(count, NAME(take_larger)(member + at, best + at, won + at, (uint8_t)k, length))
            }
        }
}

// x and y NULL: to the winner; winner NULL: to all that equal the maximum.
void NAME(max_pool2d_grad)(const REAL *g, const REAL *x, const REAL *y, const uint8_t *winner, REAL *gx, long C, long W,
                           long N, long size, long first, long last) {
    const long Q = W / size, together = N && N < BLOCK ? LINE / N : 1;
    for (long p = first; p < last; ++p)
        for (long i = 0; i < size; ++i) {
            const long row = (p * size + i) * C * W * N;
            for (long t = 0; t < C * Q; t += together)
                for (long j = 0; j < size; ++j) {
                    const long end = smaller(C * Q, t + together), count = (end - t) * N;
                    const long window = (p * C * Q + t) * N, place = row + (t / Q * W + t % Q * size + j) * N;
                    const REAL *const grad = g + window;
                    REAL members[LINE], lines[LINE], *const to = N < BLOCK ? lines : gx + place;
                    if (!winner) {
                        const REAL *const best = y + window, *member = x + place;
                        if (N < BLOCK) {
                            NAME(gather)(x + row + j * N, W, N, size, t, end, members);
                            member = members;
                        }
                        IN_BLOCKS(count, NAME(give_equal)(grad + at, member + at, best + at, to + at, length))
                    } else {
                        const uint8_t *const won = winner + window, k = (uint8_t)(i * size + j);
                        IN_BLOCKS(count, NAME(give_winner)(grad + at, won + at, k, to + at, length))
                    }
                    if (N < BLOCK) NAME(scatter)(lines, W, N, size, t, end, gx + row + j * N);
                }
            for (long c = 0; c < C && Q * size < W; ++c)
                memset(gx + row + (c * W + Q * size) * N, 0, (W - Q * size) * N * sizeof(REAL));
        }
}
#endif
