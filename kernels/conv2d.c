// 2-D convolution (cross-correlation) with stride 1, and its gradients, on a CPU's vector unit.
//
//   forward         y[p,o,q,n]  = b[o] + sum_{i,c,j} w[o,c,i,j] x[p+i-top,c,q+j-left,n], then max(., 0) if asked
//   input gradient  gx[r,c,s,n] = sum_{o,i,j} w[o,c,i,j] g[r-i+top,o,s-j+left,n]
//   weight gradient gw[o,c,i,j] = sum_{p,q,n} g[p,o,q,n] x[p+i-top,c,q+j-left,n]
//
// Arrays lie as the indices stand: x (H,C,W,N), y and g (P,O,Q,N), the images innermost; x and g are zero outside. w is
// (O,C,kh,kw), b (O,). The input gradient is the forward sum over g with flipped filters, O and C exchanged and
// kh-1-top rows of zeros, so one function does both.
//
// Why this layout: one row of outputs is a problem in one dimension, of length Q N, in which tap j reads the input row
// at a shift of j N. All loads are of neighbours, whatever N is.
//
// correlate: FILTERS filters x VECTORS vectors of outputs stay in registers while i, c, j run: a step loads VECTORS
//   vectors of x and FILTERS numbers of w for FILTERS * VECTORS multiply-adds. The filters are packed in the order in
//   which they are read. Every output is the sum of the same terms in the same order, wherever it lies and whoever
//   computes it: equal windows have equal sums to the last bit, for any number of images and of threads.
// weight_grad: g is turned, so that 2 vectors of filters stay beside PAIRS pairs (channel, tap) in registers while the
//   pixels of a CHUNK run: a step loads 2 vectors of g and PAIRS numbers of x for 2 * PAIRS multiply-adds.
// weight_grad_tiles: that of 3x3 filters in tiles of 2x2 outputs, by less than half of the multiplications.
// Rows: where zeros stand beside an image, or a row is shorter than the registers, rows are copied once into a ring of kh
//   rows that have them; otherwise they are read where they lie.
//
// Blocking in registers and cache as in Goto & van de Geijn, Anatomy of high-performance matrix multiplication (2008).
#ifndef REAL

#include "common.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    long H, C, W, N, O, P, Q, kh, kw, top, left;
} Sizes;

// FILTERS * VECTORS sums, VECTORS inputs and one filter are to fit the registers: 32 of AVX-512 and NEON, 16 of AVX. So
// are 2 * PAIRS, of CHANNELS in tiles: three times 11 are little more than 32 channels, six times little more than 64.
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, FILTERS = 8, VECTORS = 3, PAIRS = 12, CHANNELS = 11 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, FILTERS = 4, VECTORS = 3, PAIRS = 6, CHANNELS = 6 };
#elif defined(__ARM_NEON)
enum { VECTOR_BYTES = 16, FILTERS = 8, VECTORS = 3, PAIRS = 12, CHANNELS = 11 };
#else
enum { VECTOR_BYTES = 16, FILTERS = 4, VECTORS = 3, PAIRS = 6, CHANNELS = 6 };
#endif
enum { CHUNK = 128 };  // pixels of 2 vectors of filters, which then stay in the first cache
enum { TILE = 16 };    // entries of a transformed tile
enum { RUN = 32 };     // channels that are added up by themselves

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

// How many filters there are with those that pack adds.
long padded_filters(long filters) { return (filters + FILTERS - 1) / FILTERS * FILTERS; }

#define REAL float
#include "conv2d.c"
#undef REAL
#define REAL double
#include "conv2d.c"

#else

#define Vector NAME(Vector)
#define Rows NAME(Rows)
#define LANES ((long)(VECTOR_BYTES / sizeof(REAL)))
typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

// The filters as block reads them: [O / FILTERS][kh][C][kw][FILTERS], those beyond O zero. w[o,c,i,j] stands at
// w + o * stride[0] + c * stride[1] + i * stride[2] + j * stride[3].
void NAME(pack)(const Sizes *s, const REAL *w, const long stride[4], REAL *packed) {
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
    rows->ring = calloc(s->kh * s->C * rows->pitch + VECTORS * LANES, sizeof(REAL));  // a last vector may reach beyond
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

// sums[f][v] = sum over the given rows, C channels and taps j0 <= j < j1; RUN channels at a time are added up by
// themselves, which rounds less than one long sum. filters and vectors are constants where it is called.
INLINE void NAME(block)(const int filters, const int vectors, const Sizes *s, const REAL *const *rows, long row_count,
                        long pitch, long j0, long j1, const REAL *w, Vector sums[FILTERS][VECTORS]) {
    UNROLL for (int f = 0; f < filters; ++f) UNROLL for (int v = 0; v < vectors; ++v) sums[f][v] = (Vector){0};
    for (long i = 0; i < row_count; ++i)
        for (long first = 0; first < s->C; first += RUN) {
            Vector acc[FILTERS][VECTORS];
            UNROLL for (int f = 0; f < filters; ++f) UNROLL for (int v = 0; v < vectors; ++v) acc[f][v] = (Vector){0};
            for (long c = first; c < smaller(s->C, first + RUN); ++c, w += s->kw * FILTERS)
                for (long j = j0; j < j1; ++j) {
                    const REAL *const in = rows[i] + c * pitch + j * s->N, *const tap = w + j * FILTERS;
                    Vector x[VECTORS];
                    UNROLL for (int v = 0; v < vectors; ++v) x[v] = *(const Vector *)(in + v * LANES);
                    UNROLL for (int f = 0; f < filters; ++f)
                        UNROLL for (int v = 0; v < vectors; ++v) acc[f][v] += tap[f] * x[v];
                }
            UNROLL for (int f = 0; f < filters; ++f) UNROLL for (int v = 0; v < vectors; ++v) sums[f][v] += acc[f][v];
        }
}

// Output rows first <= p < last of y, from packed filters; bias may be NULL. Returns 0, or -1 where there is no memory.
int NAME(correlate)(const Sizes *s, const REAL *x, const REAL *packed, const REAL *bias, int relu, REAL *y, long first,
                    long last) {
    const long length = s->Q * s->N, w_row = s->C * s->kw * FILTERS;
    const long vectors = smaller(VECTORS, (length + LANES - 1) / LANES), step = vectors * LANES;
    Rows rows;
    if (NAME(open_rows)(s, x, step > length, &rows)) return -1;
    const REAL *lines[s->kh + 1];
    for (long p = first; p < last; ++p) {
        const long i0 = larger(0, s->top - p), i1 = larger(i0, smaller(s->kh, s->H + s->top - p));
        for (long m = 0; m < length; m += step) {
            const long at = larger(0, smaller(m, length - step));  // the last block overlaps the one before
            // Taps that for every column of the block read zeros beside the image are left out: their terms are 0.
            const long last_column = (at + smaller(step, length) - 1) / s->N;
            const long j0 = larger(0, s->left - last_column), j1 = smaller(s->kw, s->W + s->left - at / s->N);
            for (long i = i0; i < i1; ++i) lines[i - i0] = NAME(row)(s, &rows, p - s->top + i) + at;
            for (long o = 0; o < s->O; o += FILTERS) {
                const REAL *w = packed + (o / FILTERS * s->kh + i0) * w_row;
                const long remain = s->O - o, filters = remain > FILTERS / 2 ? FILTERS : remain > 1 ? FILTERS / 2 : 1;
                Vector sums[FILTERS][VECTORS];
#define CASE(f, v) \
    case 4 * (f) + (v): NAME(block)(f, v, s, lines, i1 - i0, rows.pitch, j0, j1, w, sums); break;
                switch (4 * filters + vectors) {
                    CASE(FILTERS, 3) CASE(FILTERS, 2) CASE(FILTERS, 1)
                    CASE(FILTERS / 2, 3) CASE(FILTERS / 2, 2) CASE(FILTERS / 2, 1)
                    CASE(1, 3) CASE(1, 2) CASE(1, 1)
                }
#undef CASE
                for (long f = 0; f < smaller(filters, remain); ++f) {
                    REAL *const out = y + (p * s->O + o + f) * length + at;
                    const REAL *const sum = (const REAL *)sums[f], b = bias ? bias[o + f] : 0;
                    for (long k = 0; k < smaller(step, length); ++k) {
                        const REAL value = sum[k] + b;
                        out[k] = relu && value <= 0 ? 0 : value;
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

// 3x3 filters without zeros beside the image, where channels and images are many enough to pay for the transforms.
static int NAME(fits_tiles)(const Sizes *s) {
    return s->kh == 3 && s->kw == 3 && s->H == s->P + 2 && s->W == s->Q + 2 && s->top == 0 && s->left == 0 && s->C >= 8
        && s->N >= 16;
}

// The entries of B^T x B of a tile, at a distance of `pitch` from each other, for `count` pixels. x[i][j]: its pixels.
INLINE void NAME(tile_x)(const REAL *const x[4][4], long count, long pitch, REAL *to) {
    for (long n = 0; n < count; n += LANES, to += LANES) {
        Vector r[4][4];
        UNROLL for (int j = 0; j < 4; ++j) {
            Vector d[4];
            UNROLL for (int i = 0; i < 4; ++i) d[i] = *(const Vector *)(x[i][j] + n);
            r[0][j] = d[0] - d[2], r[1][j] = d[1] + d[2], r[2][j] = d[2] - d[1], r[3][j] = d[1] - d[3];
        }
        UNROLL for (int u = 0; u < 4; ++u) {
            REAL *const at = to + 4 * u * pitch;
            *(Vector *)at = r[u][0] - r[u][2], *(Vector *)(at + pitch) = r[u][1] + r[u][2];
            *(Vector *)(at + 2 * pitch) = r[u][2] - r[u][1], *(Vector *)(at + 3 * pitch) = r[u][1] - r[u][3];
        }
    }
}

// The entries of A g A^T of a tile, for `count` numbers of each of its four pixels; all at a distance of `pitch`.
INLINE void NAME(tile_g)(const REAL *g, long count, long pitch, REAL *to) {
    for (long k = 0; k < count; k += LANES, to += LANES) {
        Vector d[4];
        UNROLL for (int i = 0; i < 4; ++i) d[i] = *(const Vector *)(g + i * pitch + k);
        const Vector r[4][2] = {{d[0], d[1]}, {d[0] + d[2], d[1] + d[3]}, {d[0] - d[2], d[1] - d[3]}, {-d[2], -d[3]}};
        UNROLL for (int u = 0; u < 4; ++u) {
            REAL *const at = to + 4 * u * pitch;
            *(Vector *)at = r[u][0], *(Vector *)(at + pitch) = r[u][0] + r[u][1];
            *(Vector *)(at + 2 * pitch) = r[u][0] - r[u][1], *(Vector *)(at + 3 * pitch) = -r[u][1];
        }
    }
}

// m[4] G, three numbers at a distance of `pitch`.
INLINE void NAME(times_G)(const REAL m[4], REAL *to, long pitch) {
    const REAL half = (m[1] + m[2]) / 2;
    to[0] = m[0] + half, to[pitch] = (m[1] - m[2]) / 2, to[2 * pitch] = half + m[3];
}

// weight_grad where fits_tiles. Of each tile, 2x2 of g and 4x4 of x, TILE products stand for the 36 of the formula
// (Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308):
//
//   gw = G^T (sum over tiles of (A g A^T) * (B^T x B)) G, where * multiplies entry by entry, and
//
//        1  0          1  0 -1  0         1    0    0
//   A =  1  1    B^T = 0  1  1  0    G = 1/2  1/2  1/2
//        1 -1          0 -1  1  0        1/2 -1/2  1/2
//        0 -1          0  1  0 -1         0    0    1
static int NAME(weight_grad_tiles)(const Sizes *s, const REAL *x, const REAL *g, REAL *gw, long first, long last) {
    const long lanes = 2 * LANES, channels = (s->C + CHANNELS - 1) / CHANNELS * CHANNELS;
    const long filters = (s->O + lanes - 1) / lanes * lanes, x_pitch = channels * CHUNK;
    const long g_pitch = (CHUNK + 1) * lanes;  // no power of two, of which all entries would share a place in the cache
    static const REAL zeros[CHUNK];
    REAL *const tiles = calloc(TILE * x_pitch, sizeof(REAL)), *const turned = calloc(4 * g_pitch, sizeof(REAL));
    REAL *const spread = malloc(TILE * g_pitch * sizeof(REAL));
    REAL *const sums = calloc(TILE * channels * filters, sizeof(REAL));  // [O / lanes][TILE][channels][lanes]
    const int failed = !tiles || !turned || !spread || !sums;
    for (long p = first; p < last && !failed; p += 2)
        for (long q = 0; q < s->Q; q += 2)
            for (long n = 0; n < s->N; n += CHUNK) {
                const long count = smaller(CHUNK, s->N - n), whole = count / LANES * LANES;
                for (long c = 0; c < s->C; ++c) {
                    const REAL *in[4][4];
                    for (long i = 0; i < 4; ++i)
                        for (long j = 0; j < 4; ++j)
                            in[i][j] = p + i < s->H && q + j < s->W
                                ? x + (((p + i) * s->C + c) * s->W + q + j) * s->N + n : zeros;
                    NAME(tile_x)(in, whole, x_pitch, tiles + c * CHUNK);
                    if (whole < count) {  // what does not fill a vector, without reading beyond x
                        REAL rest[4][4][LANES];
                        const REAL *copies[4][4];
                        memset(rest, 0, sizeof rest);
                        for (long k = 0; k < 16; ++k) {
                            memcpy(rest[k / 4][k % 4], in[k / 4][k % 4] + whole, (count - whole) * sizeof(REAL));
                            copies[k / 4][k % 4] = rest[k / 4][k % 4];
                        }
                        NAME(tile_x)(copies, LANES, x_pitch, tiles + c * CHUNK + whole);
                    }
                }
                for (long o = 0; o < s->O; o += lanes) {
                    for (long k = 0; k < 4; ++k) {
                        const long row = p + k / 2, column = q + k % 2;
                        if (row < last && column < s->Q)
                            NAME(turn)(g + ((row * s->O + o) * s->Q + column) * s->N + n, s->Q * s->N,
                                       smaller(lanes, s->O - o), count, turned + k * g_pitch);
                        else
                            memset(turned + k * g_pitch, 0, count * lanes * sizeof(REAL));
                    }
                    NAME(tile_g)(turned, count * lanes, g_pitch, spread);
                    for (long k = 0; k < TILE; ++k)
                        for (long c = 0; c < channels; c += CHANNELS) {
                            const REAL *in[CHANNELS];
                            for (long l = 0; l < CHANNELS; ++l) in[l] = tiles + k * x_pitch + (c + l) * CHUNK;
                            NAME(outer)(CHANNELS, in, spread + k * g_pitch, count,
                                        sums + ((o / lanes * TILE + k) * channels + c) * lanes);
                        }
                }
            }
    for (long o = 0; o < s->O && !failed; ++o)
        for (long c = 0; c < s->C; ++c) {
            const REAL *const sum = sums + (o / lanes * TILE * channels + c) * lanes + o % lanes;
            REAL half[4][3];  // the sums of this filter and channel, times G
            for (long u = 0; u < 4; ++u) {
                REAL m[4];
                for (long v = 0; v < 4; ++v) m[v] = sum[(4 * u + v) * channels * lanes];
                NAME(times_G)(m, half[u], 1);
            }
            for (long j = 0; j < 3; ++j) {
                const REAL m[4] = {half[0][j], half[1][j], half[2][j], half[3][j]};
                NAME(times_G)(m, gw + (c * 3 + j) * s->O + o, s->C * 3 * s->O);
            }
        }
    free(tiles), free(turned), free(spread), free(sums);
    return failed ? -1 : 0;
}

// The part of gw, as [kh][C][kw][O], that output rows first <= p < last have. Returns 0, or -1 where there is no memory.
int NAME(weight_grad)(const Sizes *s, const REAL *x, const REAL *g, REAL *gw, long first, long last) {
    if (NAME(fits_tiles)(s)) return NAME(weight_grad_tiles)(s, x, g, gw, first, last);
    const long length = s->Q * s->N, row_pairs = s->C * s->kw, pairs = s->kh * row_pairs, lanes = 2 * LANES;
    static const REAL zeros[CHUNK];  // for the pairs that fill up the last block
    Rows rows = {0};
    REAL *const turned = calloc(CHUNK * lanes, sizeof(REAL)), *const sums = malloc((pairs + PAIRS) * lanes * sizeof(REAL));
    const int failed = !turned || !sums || NAME(open_rows)(s, x, 0, &rows);
    const REAL *lines[s->kh + 1];
    for (long o = 0; o < s->O && !failed; o += lanes) {
        const long filters = smaller(lanes, s->O - o);
        memset(sums, 0, (pairs + PAIRS) * lanes * sizeof(REAL));
        rows.copied = 0;
        for (long p = first; p < last; ++p) {
            const long i0 = larger(0, s->top - p), i1 = larger(i0, smaller(s->kh, s->H + s->top - p));
            for (long i = i0; i < i1; ++i) lines[i] = NAME(row)(s, &rows, p - s->top + i);
            for (long m = 0; m < length; m += CHUNK) {
                const long count = smaller(CHUNK, length - m);
                NAME(turn)(g + (p * s->O + o) * length + m, length, filters, count, turned);
                for (long pair = i0 * row_pairs; pair < i1 * row_pairs; pair += PAIRS) {
                    const REAL *in[PAIRS];
                    for (long k = pair; k < pair + PAIRS; ++k)
                        in[k - pair] = k >= i1 * row_pairs ? zeros
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
