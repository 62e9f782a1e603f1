// What follows from one changed pixel of an image, layer by layer: a convolution is linear, so what it gives changes by
// the convolution of the change alone, and only where the change is seen.
//
//   conv2d_moved      y'[p,q,o] = y[p,q,o] + sum_{i,j,c} w[o,c,i,j] d[p+i,q+j,c];  e = f(y') - f(y)
//   max_pool2d_moved  z'[p,q,c] = max of f(y) + d over the window of p, q;         e = z' - z
//
// with f(y) = max(y, 0), or y. d, e: the changes of an image's input and output, a square of `edge` rows and columns
// each, which begins at `origin` (row, column), perhaps outside the image, and is 0 there. They lie as (M,edge,edge,C);
// y and z, of N images, as (N,P,Q,O), channels innermost: each of the M changes, of image[m], is computed by itself.
// With `keep`, y' and z' are written over y and z; then an image may be there only once, and max_pool2d_moved reads a y
// that has its change already. origin (M,2), of d; that of e is origin - k + 1 of a convolution, and of a pool origin /
// k, rounded down.
#ifndef REAL
#include "common.h"

// COLUMNS pixels x 2 vectors of filters stay in registers while the terms of the sum run.
#ifdef __AVX512F__
enum { COLUMNS = 7 };
#else
enum { COLUMNS = 5 };
#endif

typedef struct {
    long C, P, Q, O, k, edge;  // channels, output rows, columns, channels, of a pool C; kernel or window; edge of d
} Moved;

INLINE long floor_div(long a, long b) { return a / b - (a % b < 0); }

// How many filters there are with those that pack_moved adds.
long padded_moved(long filters, long bytes_of_real) {
    const long pair = 2 * VECTOR_BYTES / bytes_of_real;
    return (filters + pair - 1) / pair * pair;
}

#define REAL float
#include "moved.c"
#undef REAL
#define REAL double
#include "moved.c"
#else

typedef REAL NAME(Lane) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL))));
#define LANES (VECTOR_BYTES / (long)sizeof(REAL))
#define PAIR (2 * LANES)

// w, packed (O / PAIR,k,k,C,PAIR), the last filters filled up with zeros.
void NAME(pack_moved)(const Moved *s, const REAL *w, REAL *packed) {
    for (long o = 0; o < padded_moved(s->O, sizeof(REAL)); ++o)
        for (long i = 0; i < s->k; ++i)
            for (long j = 0; j < s->k; ++j)
                for (long c = 0; c < s->C; ++c)
                    packed[((((o / PAIR) * s->k + i) * s->k + j) * s->C + c) * PAIR + o % PAIR] =
                        o < s->O ? w[((o * s->C + c) * s->k + i) * s->k + j] : 0;
}

// sums[q][PAIR] of COLUMNS outputs in a row; d begins at the first one's input, `rows` rows of `pitch` numbers, and w
// at the row of taps that meets the first of them.
INLINE void NAME(sum_moved)(const REAL *d, long rows, long pitch, long C, long k, const REAL *w, REAL *sums) {
    NAME(Lane) sum[COLUMNS][2] = {};
    for (long i = 0; i < rows; ++i)
        for (long jc = 0; jc < k * C; ++jc, w += PAIR) {
            const NAME(Lane) w0 = *(const NAME(Lane) *)w, w1 = *(const NAME(Lane) *)(w + LANES);
            UNROLL for (long q = 0; q < COLUMNS; ++q) {
                const REAL x = d[i * pitch + q * C + jc];
                sum[q][0] += x * w0;
                sum[q][1] += x * w1;
            }
        }
    UNROLL for (long q = 0; q < COLUMNS; ++q) {
        *(NAME(Lane) *)(sums + q * PAIR) = sum[q][0];
        *(NAME(Lane) *)(sums + q * PAIR + LANES) = sum[q][1];
    }
}

int NAME(conv2d_moved)(const Moved *s, const long *image, const long *origin, const REAL *d, const REAL *packed,
                       int relu, int keep, REAL *y, REAL *e, long first, long last) {
    const long to = s->edge + s->k - 1, blocks = (to + COLUMNS - 1) / COLUMNS;
    const long pitch = (blocks * COLUMNS + s->k - 1) * s->C;
    REAL *const padded = calloc(s->edge * pitch, sizeof(REAL)), sums[COLUMNS * PAIR];
    if (!padded) return -1;
    for (long m = first; m < last; ++m) {
        const long top = origin[2 * m] - s->k + 1, left = origin[2 * m + 1] - s->k + 1;
        for (long r = 0; r < s->edge; ++r)
            memcpy(padded + r * pitch + (s->k - 1) * s->C, d + (m * s->edge + r) * s->edge * s->C,
                   s->edge * s->C * sizeof(REAL));
        memset(e + m * to * to * s->O, 0, to * to * s->O * sizeof(REAL));
        for (long r = larger(0, -top); r < smaller(to, s->P - top); ++r) {
            // Output row r takes the rows r - k + 1 to r of d, as far as there are such.
            const long from = larger(0, r - s->k + 1), rows = smaller(s->edge, r + 1) - from;
            const long tap = from - (r - s->k + 1);
            for (long o = 0; o < s->O; o += PAIR)
                for (long q0 = 0; q0 < to; q0 += COLUMNS) {
                    const REAL *const w = packed + (o * s->k + tap * PAIR) * s->k * s->C;
                    NAME(sum_moved)(padded + from * pitch + q0 * s->C, rows, pitch, s->C, s->k, w, sums);
                    const long q_last = smaller(smaller(q0 + COLUMNS, to), s->Q - left);
                    for (long q = larger(q0, -left); q < q_last; ++q) {
                        REAL *const at = y + ((image[m] * s->P + top + r) * s->Q + left + q) * s->O + o;
                        REAL *const change = e + ((m * to + r) * to + q) * s->O + o;
                        for (long f = 0; f < smaller(PAIR, s->O - o); ++f) {
                            const REAL before = at[f], after = before + sums[(q - q0) * PAIR + f];
                            if (keep) at[f] = after;
                            change[f] = relu ? (after <= 0 ? 0 : after) - (before <= 0 ? 0 : before) : after - before;
                        }
                    }
                }
        }
    }
    free(padded);
    return 0;
}

void NAME(max_pool2d_moved)(const Moved *s, const long *image, const long *origin, const REAL *d, const REAL *y, long H,
                            long W, int relu, int keep, REAL *z, REAL *e, long first, long last) {
    const long to = (s->edge + s->k - 2) / s->k + 1, edge = keep ? 0 : s->edge;
    for (long m = first; m < last; ++m) {
        const long top = floor_div(origin[2 * m], s->k), left = floor_div(origin[2 * m + 1], s->k);
        const long row = top * s->k - origin[2 * m], column = left * s->k - origin[2 * m + 1];
        memset(e + m * to * to * s->C, 0, to * to * s->C * sizeof(REAL));
        for (long r = larger(0, -top); r < smaller(to, s->P - top); ++r)
            for (long q = larger(0, -left); q < smaller(to, s->Q - left); ++q) {
                const REAL *const window = y + ((image[m] * H + (top + r) * s->k) * W + (left + q) * s->k) * s->C;
                REAL *const at = z + ((image[m] * s->P + top + r) * s->Q + left + q) * s->C;
                REAL *const change = e + ((m * to + r) * to + q) * s->C;
                for (long i = 0; i < s->k; ++i)
                    for (long j = 0; j < s->k; ++j) {
                        const REAL *const from = window + (i * W + j) * s->C;
                        const long in = row + r * s->k + i, across = column + q * s->k + j;
                        const int changed = in >= 0 && in < edge && across >= 0 && across < edge;
                        const REAL *const more = changed ? d + ((m * s->edge + in) * s->edge + across) * s->C : from;
                        for (long c = 0; c < s->C; ++c) {
                            const REAL f = relu && from[c] <= 0 ? 0 : from[c], after = changed ? f + more[c] : f;
                            const int larger = (after > change[c]) | (after != after);
                            change[c] = (i || j) & !larger ? change[c] : after;
                        }
                    }
                for (long c = 0; c < s->C; ++c) {
                    const REAL after = change[c];
                    change[c] = after - at[c];
                    if (keep) at[c] = after;
                }
            }
    }
}
#undef LANES
#undef PAIR
#endif
