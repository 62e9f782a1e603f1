// 2-D convolution (cross-correlation) with stride 1, and its gradients, on a CPU's vector unit.
//
//   forward         y[p,o,q,n]  = b[o] + sum_{i,c,j} w[o,c,i,j] x[p+i-top,c,q+j-left,n], then max(., 0) if asked
//   input gradient  gx[r,c,s,n] = sum_{o,i,j} w[o,c,i,j] g[r-i+top,o,s-j+left,n], or 0 where x <= 0, if asked
//   weight gradient gw[o,c,i,j] = sum_{p,q,n} g[p,o,q,n] x[p+i-top,c,q+j-left,n]
//
// Arrays lie as the indices stand: x (H,C,W,N), y and g (P,O,Q,N), the images innermost; x and g are zero outside. w is
// (O,C,kh,kw), b (O,). The input gradient is the forward sum over g with flipped filters, O and C exchanged and
// kh-1-top rows of zeros, so one function does both.
//
// Why this layout: one row of outputs is a problem in one dimension, of length Q N, in which tap j reads the input row
// at a shift of j N. All loads are of neighbours, whatever N is. (Where most of x is 0: conv3x3_sparse.c.)
//
// correlate: FILTERS filters x VECTORS vectors of outputs stay in registers while i, c, j run: a step loads VECTORS
//   vectors of x and FILTERS numbers of w for FILTERS * VECTORS multiply-adds. The filters are packed in the order in
//   which they are read; whole blocks of one pixel, a dense layer's, take part in too few sums for that and are read
//   where they lie. Every output is the sum of the same terms in the same order, wherever it lies and whoever computes
//   it: equal windows have equal sums to the last bit, for any number of images and of threads.
// weight_grad: g is turned, so that 2 vectors of filters stay beside PAIRS pairs (channel, tap) in registers while the
//   pixels of a CHUNK run: a step loads 2 vectors of g and PAIRS numbers of x for 2 * PAIRS multiply-adds.
// Rows: where zeros stand beside an image, or a row is shorter than the registers, rows are copied once into a ring of
//   kh rows that have them; otherwise they are read where they lie.
//
// Blocking in registers and cache as in Goto & van de Geijn, Anatomy of high-performance matrix multiplication (2008).
#ifndef REAL

#include "common.h"

// FILTERS * VECTORS sums, VECTORS inputs and one filter are to fit the registers: 32 of AVX-512 and NEON, 16 of AVX. So
// are 2 * PAIRS, and the WIDE sums of one filter alone, which the input gradient of a layer of one channel has.
#if defined(__AVX512F__)
enum { FILTERS = 8, VECTORS = 3, PAIRS = 12 };
#elif defined(__AVX__)
enum { FILTERS = 4, VECTORS = 3, PAIRS = 6 };
#elif defined(__ARM_NEON)
enum { FILTERS = 8, VECTORS = 3, PAIRS = 12 };
#else
enum { FILTERS = 4, VECTORS = 3, PAIRS = 6 };
#endif
enum { WIDE = 8 };
_Static_assert(WIDE <= FILTERS * VECTORS && WIDE < 16, "sums and cases of correlate");
enum { CHUNK = 128 };  // pixels of 2 vectors of filters, which then stay in the first cache

const long filters_together = FILTERS;

#define REAL float
#include "conv2d.c"
#undef REAL
#define REAL double
#include "conv2d.c"

#else

#include "real.h"

#define Vector NAME(Vector)
#define Rows NAME(Rows)
#define LANES ((long)(VECTOR_BYTES / sizeof(REAL)))
typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

// The filters as block reads them: [O / FILTERS][kh][C][kw][FILTERS], those beyond O zero. w[o,c,i,j] stands at
// w + o * stride[0] + c * stride[1] + i * stride[2] + j * stride[3]. Returns whether all are finite.
int NAME(pack)(const Sizes *s, const REAL *w, const long stride[4], REAL *packed) {
    for (long c0 = 0; c0 < s->C; c0 += RUN)
        for (long first = 0; first < s->O; first += FILTERS)
            for (long i = 0; i < s->kh; ++i) {
                REAL *to = packed + ((first * s->kh + i * FILTERS) * s->C + c0 * FILTERS) * s->kw;
                for (long c = c0; c < smaller(s->C, c0 + RUN); ++c)
                    for (long j = 0; j < s->kw; ++j, to += FILTERS) {
                        const REAL *const at = w + first * stride[0] + c * stride[1] + i * stride[2] + j * stride[3];
                        if (first + FILTERS <= s->O)
                            UNROLL for (long f = 0; f < FILTERS; ++f) to[f] = at[f * stride[0]];
                        else
                            for (long f = 0; f < FILTERS; ++f) to[f] = first + f < s->O ? at[f * stride[0]] : 0;
                    }
            }
    return NAME(all_finite)(packed, (s->O + FILTERS - 1) / FILTERS * FILTERS * s->C * s->kh * s->kw);
}

// The input rows as the sums read them: C lines at a distance of `pitch`.
typedef struct {
    const REAL *x;
    REAL *ring;  // kh copies with zeros beside them, or NULL where x is read itself
    long pitch, copied;
} Rows;

// Returns 0, or -1 where there is no memory.
static int NAME(open_rows)(const Sizes *s, const REAL *x, int copy, Rows *rows) {
    const long columns = s->Q + s->kw - 1;
    *rows = (Rows){x, NULL, s->W * s->N, 0};
    if (s->left == 0 && columns <= s->W && !copy) return 0;
    rows->pitch = columns * s->N;
    // A last vector may reach beyond; those that begin at a cache line are loaded faster.
    rows->ring = cleared((s->kh * s->C * rows->pitch + WIDE * LANES) * sizeof(REAL));
    return rows->ring ? 0 : -1;
}

// Row r; rows are asked for in order, a row again only while it is one of the last kh.
static const REAL *NAME(row)(const Sizes *s, Rows *rows, long r) {
    if (!rows->ring) return rows->x + r * s->C * rows->pitch;
    REAL *const slot = rows->ring + r % s->kh * s->C * rows->pitch;
    if (r < rows->copied) return slot;
    const long before = s->left * s->N, inside = smaller(s->W * s->N, rows->pitch - before);
    for (long c = 0; c < s->C; ++c) {
        REAL *const line = slot + c * rows->pitch;
        memset(line, 0, before * sizeof(REAL));
        memcpy(line + before, rows->x + (r * s->C + c) * s->W * s->N, inside * sizeof(REAL));
        memset(line + before + inside, 0, (rows->pitch - before - inside) * sizeof(REAL));
    }
    rows->copied = r + 1;
    return slot;
}

// sums[f][v] = sum over the given rows, C channels and taps j0 <= j < j1; what RUN channels and `width` taps of a row
// give is added up by itself, which rounds less than one long sum. stride: of filters, channels and taps in w. filters,
// vectors and the stride of packed filters are constants where it is called.
INLINE void NAME(block)(const int filters, const int vectors, const Sizes *s, const REAL *const *rows, long row_count,
                        long pitch, long j0, long j1, long width, const REAL *w, const long stride[3],
                        Vector sums[FILTERS * VECTORS]) {
    UNROLL for (int k = 0; k < filters * vectors; ++k) sums[k] = (Vector){0};
    for (long i = 0; i < row_count; ++i, w += s->C * stride[1])
        for (long c0 = 0; c0 < s->C; c0 += RUN)
            for (long j = j0; j < j1; j += width) {
                Vector acc[FILTERS * VECTORS];
                UNROLL for (int k = 0; k < filters * vectors; ++k) acc[k] = (Vector){0};
                for (long c = c0; c < smaller(s->C, c0 + RUN); ++c)
                    for (long k = j; k < smaller(j1, j + width); ++k) {
                        const REAL *const in = rows[i] + c * pitch + k * s->N;
                        const REAL *const tap = w + c * stride[1] + k * stride[2];
                        Vector x[WIDE];
                        UNROLL for (int v = 0; v < vectors; ++v) x[v] = *(const Vector *)(in + v * LANES);
                        UNROLL for (int f = 0; f < filters; ++f)
                            UNROLL for (int v = 0; v < vectors; ++v) acc[f * vectors + v] += tap[f * stride[0]] * x[v];
                    }
                UNROLL for (int k = 0; k < filters * vectors; ++k) sums[k] += acc[k];
            }
}

// Output rows first <= p < last of y; bias and mask may be NULL: y is 0 where a mask is 0 or below. w: packed filters,
// or, where stride is not NULL, a multiple of FILTERS filters of one pixel, w[o,c] at w + o * stride[0] + c * stride[1].
// by_tap: every tap is added up by itself, as conv3x3_sparse.c does, not the taps of a row together. Returns 0, or -1
// where there is no memory.
int NAME(correlate)(const Sizes *s, const REAL *x, const REAL *w, const long *stride, const REAL *bias, int relu,
                    const REAL *mask, int by_tap, REAL *y, long first, long last) {
    const long width = by_tap ? 1 : s->kw, length = s->Q * s->N;
    const long packed[3] = {1, s->kw * FILTERS, FILTERS};
    const long pixel[3] = {stride ? stride[0] : 0, stride ? stride[1] : 0, 0};
    // Blocks of a row, as few and as equal as they can be.
    const long most = (s->O == 1 && !stride ? WIDE : VECTORS) * LANES, blocks = larger(1, (length + most - 1) / most);
    const long vectors = larger(1, (length + blocks * LANES - 1) / (blocks * LANES)), step = vectors * LANES;
    Rows rows;
    if (NAME(open_rows)(s, x, step > length, &rows)) return -1;
    const REAL *lines[s->kh + 1];
    if (stride && stride[0] == 1)  // or 8 filters at a time, far from each other, would be waited for
        for (long c = 0; c < s->C; ++c) fetch(w + c * stride[1], s->O * sizeof(REAL), 0);
    for (long p = first; p < last; ++p) {
        const long i0 = larger(0, s->top - p), i1 = larger(i0, smaller(s->kh, s->H + s->top - p));
        for (long m = 0; m < length; m += step) {
            const long at = larger(0, smaller(m, length - step));  // the last block overlaps the one before
            // Taps that for every column of the block read zeros beside the image are left out: their terms are 0, as
            // filters beside which there are zeros are finite.
            const long last_column = (at + smaller(step, length) - 1) / s->N;
            const long j0 = larger(0, s->left - last_column), j1 = smaller(s->kw, s->W + s->left - at / s->N);
            for (long i = i0; i < i1; ++i) lines[i - i0] = NAME(row)(s, &rows, p - s->top + i) + at;
            for (long o = 0; o < s->O; o += FILTERS) {
                const REAL *const from = w + (stride ? o * stride[0] : (o * s->kh + i0 * FILTERS) * s->C * s->kw);
                const long remain = s->O - o, filters = remain > FILTERS / 2 ? FILTERS : remain > 1 ? FILTERS / 2 : 1;
                for (long f = 0; f < smaller(filters, remain); ++f)
                    fetch(y + (p * s->O + o + f) * length + at, smaller(step, length) * sizeof(REAL), 1);
                Vector sums[FILTERS * VECTORS];
                switch (stride ? vectors : 16 * filters + vectors) {
#define CASE(which, f, v, strides) \
    case which: NAME(block)(f, v, s, lines, i1 - i0, rows.pitch, j0, j1, width, from, strides, sums); break;
#define PACKED(f, v) CASE(16 * (f) + v, f, v, packed)
                    PACKED(FILTERS, 1) PACKED(FILTERS, 2) PACKED(FILTERS, 3)
                    PACKED(FILTERS / 2, 1) PACKED(FILTERS / 2, 2) PACKED(FILTERS / 2, 3)
                    PACKED(1, 1) PACKED(1, 2) PACKED(1, 3) PACKED(1, 4) PACKED(1, 5) PACKED(1, 6) PACKED(1, 7)
                    PACKED(1, WIDE)
                    CASE(1, FILTERS, 1, pixel) CASE(2, FILTERS, 2, pixel) CASE(3, FILTERS, 3, pixel)
#undef PACKED
#undef CASE
                }
                for (long f = 0; f < smaller(filters, remain); ++f) {
                    const long place = (p * s->O + o + f) * length + at;
                    const REAL *const sum = (const REAL *)(sums + f * vectors), b = bias ? bias[o + f] : 0;
                    if (mask)
                        for (long k = 0; k < smaller(step, length); ++k) {
                            const REAL value = sum[k] + b, decides = mask[place + k];
                            y[place + k] = decides <= 0 ? 0 : value;
                        }
                    else
                        for (long k = 0; k < smaller(step, length); ++k) {
                            const REAL value = sum[k] + b;
                            y[place + k] = relu && value <= 0 ? 0 : value;
                        }
                }
            }
        }
    }
    free(rows.ring);
    return 0;
}

// turned[k][f] = g[f][k] for `filters` lines of `count` pixels, at a distance of `pitch`.
INLINE void NAME(turn)(const REAL *g, long pitch, long filters, long count, REAL *turned) {
    for (long f = 0; f < filters; ++f)
        for (long k = 0; k < count; ++k) turned[k * 2 * LANES + f] = g[f * pitch + k];
}

// sums[k][f] += sum over `count` pixels of x[k] times g[.][f], for `lines` x, a constant, and 2 vectors of filters.
INLINE void NAME(outer)(const int lines, const REAL *const *x, const REAL *g, long count, REAL *sums) {
    Vector acc[PAIRS][2];
    UNROLL for (int k = 0; k < lines; ++k) acc[k][0] = acc[k][1] = (Vector){0};
    for (long n = 0; n < count; ++n, g += 2 * LANES) {
        const Vector g0 = *(const Vector *)g, g1 = *(const Vector *)(g + LANES);
        UNROLL for (int k = 0; k < lines; ++k) {
            acc[k][0] += x[k][n] * g0;
            acc[k][1] += x[k][n] * g1;
        }
    }
    UNROLL for (int k = 0; k < lines; ++k) {
        *(Vector *)(sums + 2 * k * LANES) += acc[k][0];
        *(Vector *)(sums + (2 * k + 1) * LANES) += acc[k][1];
    }
}

// The part of gw, as [kh][C][kw][O], that output rows first <= p < last have. Returns 0, or -1 where there is no
// memory.
int NAME(weight_grad)(const Sizes *s, const REAL *x, const REAL *g, REAL *gw, long first, long last) {
    const long length = s->Q * s->N, row_pairs = s->C * s->kw, pairs = s->kh * row_pairs, lanes = 2 * LANES;
    static const REAL zeros[CHUNK];  // for rows beside the image, and the pairs that fill up the last block
    Rows rows = {0};
    REAL *const turned = calloc(CHUNK * lanes, sizeof(REAL));
    REAL *const sums = malloc((pairs + PAIRS) * lanes * sizeof(REAL));
    const int failed = !turned || !sums || NAME(open_rows)(s, x, 0, &rows);
    const REAL *lines[s->kh + 1];
    for (long o = 0; o < s->O && !failed; o += lanes) {
        const long filters = smaller(lanes, s->O - o);
        memset(sums, 0, (pairs + PAIRS) * lanes * sizeof(REAL));
        rows.copied = 0;
        for (long p = first; p < last; ++p) {
            for (long i = 0; i < s->kh; ++i) {
                const long r = p - s->top + i;
                lines[i] = r >= 0 && r < s->H ? NAME(row)(s, &rows, r) : NULL;
            }
            for (long m = 0; m < length; m += CHUNK) {
                const long count = smaller(CHUNK, length - m);
                NAME(turn)(g + (p * s->O + o) * length + m, length, filters, count, turned);
                for (long pair = 0; pair < pairs; pair += PAIRS) {
                    const REAL *in[PAIRS];
                    for (long k = pair; k < pair + PAIRS; ++k)
                        in[k - pair] = k >= pairs || !lines[k / row_pairs] ? zeros
                            : lines[k / row_pairs] + k / s->kw % s->C * rows.pitch + k % s->kw * s->N + m;
                    NAME(outer)(PAIRS, in, turned, count, sums + pair * lanes);
                }
            }
        }
        for (long pair = 0; pair < pairs; ++pair)
            memcpy(gw + pair * s->O + o, sums + pair * lanes, filters * sizeof(REAL));
    }
    free(rows.ring), free(turned), free(sums);
    return failed ? -1 : 0;
}

#undef Vector
#undef Rows
#undef LANES
#endif
