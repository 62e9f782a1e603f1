// Maximum over size x size windows with stride size; remaining rows and columns are dropped. As in max_pool2d.cu:
//
//   forward   y[p,c,q,n] = max over i, j of x[p*size+i,c,q*size+j,n]; winner: i*size+j of the first maximum
//   gradient  first: gx = g at the winner;  all: gx = g wherever x equals y (Theano's rule).  0 elsewhere
//
// NaN is larger than any number, and equal to itself. x, gx (H,C,W,N); y, winner, g (P,C,Q,N): the images innermost, so
// that a window of all images is a few contiguous lines. Output rows first <= p < last.
#ifndef REAL
#include "common.h"
#include <stdint.h>
#include <string.h>
#define REAL float
#include "max_pool2d.c"
#undef REAL
#define REAL double
#include "max_pool2d.c"
#else

void NAME(max_pool2d)(const REAL *x, REAL *y, uint8_t *winner, long C, long W, long N, long size, long first, long last) {
    const long Q = W / size;
    for (long p = first; p < last; ++p)
        for (long c = 0; c < C; ++c)
            for (long q = 0; q < Q; ++q) {
                REAL *const best = y + ((p * C + c) * Q + q) * N;
                uint8_t *const position = winner + ((p * C + c) * Q + q) * N;
                memset(position, 0, N);
                for (long k = 0; k < size * size; ++k) {
                    const REAL *const member = x + (((p * size + k / size) * C + c) * W + q * size + k % size) * N;
                    if (k == 0)
                        memcpy(best, member, N * sizeof(REAL));
                    else
                        for (long n = 0; n < N; ++n) {
                            const int larger = (member[n] > best[n]) | ((member[n] != member[n]) & (best[n] == best[n]));
                            best[n] = larger ? member[n] : best[n];
                            position[n] = larger ? (uint8_t)k : position[n];
                        }
                }
            }
}

void NAME(max_pool2d_grad)(const REAL *g, const REAL *x, const REAL *y, const uint8_t *winner, REAL *gx, long C, long W,
                           long N, long size, int all_ties, long first, long last) {
    const long Q = W / size;
    for (long p = first; p < last; ++p)
        for (long i = 0; i < size; ++i)
            for (long c = 0; c < C; ++c) {
                const long line = (((p * size + i) * C + c) * W) * N;
                for (long q = 0; q < Q; ++q)
                    for (long j = 0; j < size; ++j) {
                        const long window = ((p * C + c) * Q + q) * N;
                        const REAL *const grad = g + window, *const best = y + window;
                        const REAL *const member = x + line + (q * size + j) * N;
                        REAL *const to = gx + line + (q * size + j) * N;
                        const uint8_t *const won = winner + window, k = (uint8_t)(i * size + j);
                        if (all_ties)
                            for (long n = 0; n < N; ++n) {
                                const int tied = (member[n] == best[n]) | ((member[n] != member[n]) & (best[n] != best[n]));
                                to[n] = tied ? grad[n] : 0;
                            }
                        else
                            for (long n = 0; n < N; ++n) to[n] = won[n] == k ? grad[n] : 0;
                    }
                memset(gx + line + Q * size * N, 0, (W - Q * size) * N * sizeof(REAL));
            }
}
#endif
