// A 3x3 convolution with stride 1 and its gradients that leave out what is 0 in their input:
//
//   forward         y[p,o,q,n]  = b[o] + sum_{i,c,j} w[o,c,i,j] x[p+i-top,c,q+j-left,n], then max(., 0) if asked, then
//                   the maxima over windows and their winners of max_pool2d.c if asked, so that y is not written
//   weight gradient gw[o,c,i,j] = sum_{p,q,n} g[p,o,q,n] x[p+i-top,c,q+j-left,n]
//
// and the input gradient is forward over g, as in conv2d.c. Arrays lie as there: x (H,C,W,N), y, g (P,O,Q,N); x and g
// are zero outside. Of what a 2x2 max-pool passes back one number in four is not 0, of what a ReLU gives or passes back
// about half, beside a dark background less. Which ones differs from image to image, so vectors cannot run along the
// images, as they do in conv2d.c: they run along the output channels o, in the weight gradient along c. w and gw are
// packed for it, as [O / LANES][C][TAPS][LANES] and [C / LANES][O][TAPS][LANES], the channels that fill up zero.
//
// What is not 0 is listed, image by image. The sums of a list, 3x3 taps x one or more vectors of channels, stay in
// registers: a step loads a vector for every multiply-add. The lists of forward: RUN channels of one place (r, q) of x,
// whose sums are then added to the 3x3 places of y that they meet, places in order; so the taps are packed last one
// first. The lists of the weight gradient: all places of ROWS rows of one o of g. So every number is the sum of the
// same terms in the same order wherever it lies: equal windows have equal sums to the last bit. Those of forward are
// also the bits of conv2d.c when it adds up by tap, but for the sign and payload of a NaN: where filters are finite,
// terms of 0 change no sum. So which of the two runs is a matter of time alone.
//
// Memory is read and written in lines of many images, BLOCK to MOST; between, an image lies by itself, channels
// innermost, as many images at a time as fit the second cache.
#ifndef REAL

#include "common.h"

enum { TAPS = 9, BLOCK = 16, MOST = 64, CACHE = 3 << 18 };  // CACHE: bytes of the second cache for images at work
#if defined(__AVX512F__) || defined(__ARM_NEON)
enum { TOGETHER = 2 };  // vectors of outputs: TAPS * TOGETHER sums are to fit the registers, 32 here and 16 elsewhere
#else
enum { TOGETHER = 1 };
#endif
enum { ROWS = 4 };   // of g that the weight gradient takes together
enum { AHEAD = 3 };  // columns that are asked of memory early
enum { SAMPLED = 5 };  // of so many rows and columns one tells how much is 0

const long vector_bytes = VECTOR_BYTES;

// `count` numbers of some bytes filled up to an odd number of cache lines: what lies at such a distance from each other
// has different places in the cache.
INLINE long pitch(long count, long bytes) { return ((count * bytes / CACHE_LINE + 1) | 1) * CACHE_LINE / bytes; }

#define REAL float
#include "conv3x3_sparse.c"
#undef REAL
#define REAL double
#include "conv3x3_sparse.c"

#else

#include "real.h"

#define Vector NAME(TapVector)
#define Entry NAME(Entry)
#define Sums NAME(Sums)
#define LANES ((long)(VECTOR_BYTES / sizeof(REAL)))
typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

// A number of g that is not 0, and where what it is multiplied with begins.
typedef struct {
    REAL value;
    int32_t at;
} Entry;

// The sums of a list, for TAPS taps x some vectors of channels.
typedef struct {
    Vector of[TAPS][TOGETHER];
} Sums;

// How many of `count` images of `numbers` numbers each are at work together.
static long NAME(together)(long numbers, long count) {
    const long fit = CACHE / (numbers * (long)sizeof(REAL)) / BLOCK * BLOCK;
    return smaller(larger(1, count), larger(BLOCK, smaller(MOST, fit)));
}

// Which of at most 64 numbers are not 0, a bit for each. A loop that is unrolled gcc does not turn into vectors.
INLINE uint64_t NAME(present)(const REAL *line, long count) {
    uint64_t present = 0;
    long k = 0;
    for (; k + BLOCK <= count; k += BLOCK) {
        uint32_t bits = 0;
        NO_UNROLL for (int l = 0; l < BLOCK; ++l) bits |= line[k + l] != 0 ? (uint32_t)1 << l : 0;
        present |= (uint64_t)bits << k;
    }
    for (; k < count; ++k) present |= (uint64_t)(line[k] != 0) << k;
    return present;
}

// Appends the numbers of a line that are not 0, or all, to the lists of their images, which end at `ends`.
INLINE void NAME(append)(const REAL *line, long images, int32_t at, int all, Entry **ends) {
    for (uint64_t bits = all ? ~0ull >> (MOST - images) : NAME(present)(line, images); bits; bits &= bits - 1) {
        const int k = __builtin_ctzll(bits);
        *ends[k]++ = (Entry){line[k], at};
    }
}

// of[t][v] = sum of value * (vector of tap t of those at `from + v * next + at`, at distances of row and column), for
// the taps of the rows i0 <= i < i1 and v < vectors. These are constants where it is called.
INLINE Sums NAME(sum)(const int i0, const int i1, const int vectors, const Entry *e, const Entry *end, const REAL *from,
                      long next, long row, long column) {
    Sums sums = {0};
    const REAL *first[TOGETHER];
    UNROLL for (int v = 0; v < vectors; ++v) first[v] = from + v * next;
    for (; e < end; ++e)
        UNROLL for (int t = 3 * i0; t < 3 * i1; ++t) {
            const long at = e->at + t / 3 * row + t % 3 * column;
            UNROLL for (int v = 0; v < vectors; ++v) sums.of[t][v] += e->value * *(const Vector *)(first[v] + at);
        }
    return sums;
}

INLINE void NAME(add)(const int i0, const int i1, const int vectors, Sums sums, REAL *const rows[3], long at,
                      long column) {
    UNROLL for (int t = 3 * i0; t < 3 * i1; ++t)
        UNROLL for (int v = 0; v < vectors; ++v)
            *(Vector *)(rows[t / 3] + at + t % 3 * column + v * LANES) += sums.of[t][v];
}

// Adds to rows p - 2 + i of y, i0 <= i < i1, for `vectors` vectors of channels from o on, what the lists of a row of x
// give, places in order.
INLINE void NAME(scatter)(const int i0, const int i1, const int vectors, const Sizes *s, Entry *const *ends,
                          long images, const REAL *packed, REAL *at_work, long image, long depth, long line, long p,
                          long o) {
    const long next = s->C * TAPS * LANES;
    for (long k = 0; k < images; ++k) {
        REAL *const to = at_work + k * image + o;
        REAL *const rows[3] = {to + (p + 1) % 3 * line, to + (p + 2) % 3 * line, to + p % 3 * line};
        for (long q = 0; q < s->W; ++q) {
            const Entry *const begin = ends[q * MOST + k], *const end = ends[(q + 1) * MOST + k];
            if (begin == end) continue;
            const REAL *const from = packed + o / LANES * next;
            const Sums sums = NAME(sum)(i0, i1, vectors, begin, end, from, next, 3 * LANES, LANES);
            NAME(add)(i0, i1, vectors, sums, rows, q * depth, depth);
        }
    }
}

// The filters as scatter reads them: [O / LANES][C][TAPS][LANES], the last tap first, those beyond O zero. w[o,c,i,j]
// stands at w + o * stride[0] + c * stride[1] + i * stride[2] + j * stride[3]. Returns whether all are finite.
static int NAME(pack_taps)(const Sizes *s, const REAL *w, const long stride[4], REAL *packed) {
    REAL *to = packed;
    for (long o = 0; o < s->O; o += LANES)
        for (long c = 0; c < s->C; ++c)
            for (long t = TAPS - 1; t >= 0; --t, to += LANES) {
                const REAL *const at = w + o * stride[0] + c * stride[1] + t / 3 * stride[2] + t % 3 * stride[3];
                for (long l = 0; l < LANES; ++l) to[l] = o + l < s->O ? at[l * stride[0]] : 0;
            }
    return NAME(all_finite)(packed, to - packed);
}

// Whether less than the share `dense` of x is not 0, as lines of all channels have it, one in SAMPLED^2.
static int NAME(is_sparse)(const Sizes *s, const REAL *x, double dense) {
    long present = 0, seen = 0;
    for (long r = 0; r < s->H; r += SAMPLED)
        for (long c = 0; c < s->C; ++c)
            for (long q = 0; q < s->W; q += SAMPLED, seen += s->N) {
                const REAL *const line = x + ((r * s->C + c) * s->W + q) * s->N;
                int32_t in_line = 0;
                for (long n = 0; n < s->N; ++n) in_line += line[n] != 0;
                present += in_line;
            }
    return present < dense * seen;
}

// Row p of y for `images` images from n on, from its sums.
static void NAME(give)(const Sizes *s, const REAL *sums, long image, long depth, const REAL *bias, int relu,
                       const REAL *mask, REAL *y, long p, long n, long images) {
    for (long q = 0; q < s->Q; ++q)
        for (long o = 0; o < s->O; ++o) {
            const REAL b = bias ? bias[o] : 0;
            const long place = ((p * s->O + o) * s->Q + q) * s->N + n;
            const REAL *const sum = sums + (q + 2 - s->left) * depth + o;
            if (mask) {  // each its own loop, or gcc makes no vectors
                fetch(mask + place + AHEAD * s->N, images * sizeof(REAL), 0);
                for (long k = 0; k < images; ++k) {
                    const REAL value = sum[k * image] + b, decides = mask[place + k];
                    y[place + k] = decides <= 0 ? 0 : value;
                }
            } else
                for (long k = 0; k < images; ++k) {
                    const REAL value = sum[k * image] + b;
                    y[place + k] = relu && value <= 0 ? 0 : value;
                }
        }
}

// What the k-th members of the windows of `images` images give to the maxima and their winners.
INLINE void NAME(give_member)(const REAL *sum, long image, REAL b, int relu, long k, long images, REAL *largest,
                              uint8_t *winner) {
    REAL line[MOST];
    NO_UNROLL for (long n = 0; n < images; ++n) {
        const REAL value = sum[n * image] + b;
        line[n] = relu && value <= 0 ? 0 : value;
    }
    if (k)
        NAME(take_larger)(line, largest, winner, k, images);
    else {
        memcpy(largest, line, images * sizeof(REAL));
        memset(winner, 0, images);
    }
}

// What row p of y gives to the maxima over windows of size x size, and to the winners. Images that do not fill vectors
// of bytes are taken BLOCK at a time, the last ones with some of those before once more, which changes nothing: a rest
// compilers may leave out of the vectors.
static void NAME(give_largest)(const Sizes *s, const REAL *sums, long image, long depth, const REAL *bias, int relu,
                               long size, REAL *largest, uint8_t *winner, long p, long n, long images) {
    const long Q = s->Q / size, together = images % (2 * BLOCK) ? smaller(images, BLOCK) : images;
    for (long q = 0; q < Q; ++q)
        for (long o = 0; o < s->O; ++o)
            for (long j = 0; j < size; ++j)
                for (long m = 0; m < images; m += together) {
                    const long at = smaller(m, images - together), k = p % size * size + j;
                    const REAL *const sum = sums + at * image + (q * size + j + 2 - s->left) * depth + o;
                    const REAL b = bias ? bias[o] : 0;
                    const long place = ((p / size * s->O + o) * Q + q) * s->N + n + at;
                    if (together == BLOCK)
                        NAME(give_member)(sum, image, b, relu, k, BLOCK, largest + place, winner + place);
                    else
                        NAME(give_member)(sum, image, b, relu, k, together, largest + place, winner + place);
                }
}

// Output rows first <= p < last, for the images first_image <= n < last_image; w, stride as for pack_taps; bias and mask
// may be NULL: y is 0 where a mask is 0 or below. winner: NULL, or y (P/size,O,Q/size,N) is to have the maxima over
// windows of size x size, of which winner (of that shape) tells the first; first and last are multiples of size then.
// Returns 1; 0 where nothing is done, for more than the share `dense` of x is not 0, or a filter is not finite, and NaN
// times 0; or -1 where there is no memory.
int NAME(sparse_correlate)(const Sizes *s, const REAL *x, double dense, const REAL *w, const long stride[4],
                           const REAL *bias, int relu, const REAL *mask, REAL *y, long size, uint8_t *winner,
                           long first, long last, long first_image, long last_image) {
    if (!NAME(is_sparse)(s, x, dense)) return 0;
    const long depth = (s->O + LANES - 1) / LANES * LANES, columns = larger(s->W + 2, s->Q + 2 - s->left);
    const long line = columns * depth, image = pitch(3 * line, sizeof(REAL));
    const long most = NAME(together)(image, last_image - first_image);
    const long longest = pitch(s->W * smaller(s->C, RUN), sizeof(Entry));
    REAL *const at_work = cleared(most * image * sizeof(REAL));  // row p of y in place p % 3, its column q at q + 2 - left
    Entry *const lists = malloc(most * longest * sizeof(Entry));
    Entry **const ends = malloc((s->W + 1) * MOST * sizeof(Entry *));
    REAL *const packed = cleared(depth * s->C * TAPS * sizeof(REAL));
    int done = at_work && lists && ends && packed ? NAME(pack_taps)(s, w, stride, packed) : -1;
    for (long n = first_image; n < last_image && done == 1; n += most) {
        const long images = smaller(most, last_image - n);
        for (long p = first; p < last + 2; ++p) {  // the last row that row p - top of x meets
            const long r = p - s->top;
            for (long c0 = 0; c0 < s->C && r >= 0 && r < s->H; c0 += RUN) {
                for (long k = 0; k < images; ++k) ends[k] = lists + k * longest;
                for (long q = 0; q < s->W; ++q) {
                    Entry **const end = ends + (q + 1) * MOST;
                    memcpy(end, end - MOST, images * sizeof(Entry *));
                    for (long c = c0; c < smaller(s->C, c0 + RUN); ++c) {
                        const REAL *const pixels = x + ((r * s->C + c) * s->W + q) * s->N + n;
                        fetch(pixels + AHEAD * s->N, images * sizeof(REAL), 0);
                        NAME(append)(pixels, images, c * TAPS * LANES, 0, end);
                    }
                }
                for (long o = 0; o < depth; o += TOGETHER * LANES) {
                    const long i0 = larger(0, first + 2 - p), i1 = smaller(3, last + 2 - p);  // rows that are asked for
                    switch (8 * i0 + 2 * i1 + (depth - o >= TOGETHER * LANES)) {
#define CASE(i0, i1, whole, vectors) \
    case 8 * (i0) + 2 * (i1) + (whole): \
        NAME(scatter)(i0, i1, vectors, s, ends, images, packed, at_work, image, depth, line, p, o); break;
#define CASES(i0, i1) CASE(i0, i1, 0, 1) CASE(i0, i1, 1, TOGETHER)
                        CASES(0, 3) CASES(0, 2) CASES(0, 1) CASES(1, 3) CASES(2, 3) CASES(1, 2)
#undef CASES
#undef CASE
                    }
                }
            }
            REAL *const ready = at_work + (p + 1) % 3 * line;  // row p - 2, which no later row of x meets
            if (p - 2 >= first && winner)
                NAME(give_largest)(s, ready, image, depth, bias, relu, size, y, winner, p - 2, n, images);
            else if (p - 2 >= first)
                NAME(give)(s, ready, image, depth, bias, relu, mask, y, p - 2, n, images);
            for (long k = 0; k < images; ++k) memset(ready + k * image, 0, line * sizeof(REAL));
        }
        memset(at_work, 0, most * image * sizeof(REAL));
    }
    free(at_work), free(lists), free(ends), free(packed);
    return done;
}

// Row r of x for `images` images from n on, zeros beside it, to `to` with channels innermost. Returns whether a number
// is not finite.
static int NAME(turn_row)(const Sizes *s, const REAL *x, long r, long n, long images, long depth, long image,
                          REAL *to) {
    int32_t infinite[MOST] = {0}, any = 0;
    for (long q = 0; q < s->Q + 2; ++q)
        for (long c = 0; c < s->C; ++c) {
            const long column = q - s->left;
            REAL *const at = to + q * depth + c;
            if (r < 0 || r >= s->H || column < 0 || column >= s->W) {
                for (long k = 0; k < images; ++k) at[k * image] = 0;
                continue;
            }
            const REAL *const pixels = x + ((r * s->C + c) * s->W + column) * s->N + n;
            fetch(pixels + 2 * s->N, images * sizeof(REAL), 0);
            for (long k = 0; k < images; ++k) infinite[k] |= pixels[k] - pixels[k] != 0;
            for (long k = 0; k < images; ++k) at[k * image] = pixels[k];
        }
    for (long k = 0; k < images; ++k) any |= infinite[k];
    return any;
}

// The part of gw that rows first <= p < last of the images first_image <= n < last_image have. Returns 0, or -1 where
// there is no memory.
int NAME(sparse_weight_grad)(const Sizes *s, const REAL *x, const REAL *g, REAL *gw, long first, long last,
                             long first_image, long last_image) {
    const long depth = (s->C + LANES - 1) / LANES * LANES, line = (s->Q + 2) * depth;
    const long image = pitch((ROWS + 2) * line, sizeof(REAL));
    const long most = NAME(together)(image, last_image - first_image);
    const long longest = pitch(s->O * ROWS * s->Q, sizeof(Entry));
    REAL *const at_work = cleared(most * image * sizeof(REAL));
    Entry *const lists = malloc(most * longest * sizeof(Entry));
    Entry **const ends = malloc((s->O + 1) * MOST * sizeof(Entry *));
    const int failed = !at_work || !lists || !ends;
    memset(gw, 0, depth * s->O * TAPS * sizeof(REAL));
    for (long n = first_image; n < last_image && !failed; n += most)
        for (long p = first; p < last; p += ROWS) {
            const long images = smaller(most, last_image - n), rows = smaller(ROWS, last - p);
            for (long k = 0; k < images; ++k) ends[k] = lists + k * longest;
            int all = 0;  // where x is not finite: times 0 it is NaN
            for (long i = 0; i < rows + 2; ++i)
                all |= NAME(turn_row)(s, x, p + i - s->top, n, images, depth, image, at_work + i * line);
            for (long o = 0; o < s->O; ++o) {
                Entry **const end = ends + (o + 1) * MOST;
                memcpy(end, end - MOST, images * sizeof(Entry *));
                for (long i = 0; i < rows; ++i)
                    for (long q = 0; q < s->Q; ++q) {
                        const REAL *const entries = g + (((p + i) * s->O + o) * s->Q + q) * s->N + n;
                        fetch(entries + AHEAD * s->N, images * sizeof(REAL), 0);
                        NAME(append)(entries, images, i * line + q * depth, all, end);
                    }
            }
            for (long k = 0; k < images; ++k)
                for (long c = 0; c < depth; c += LANES) {
                    REAL *const to = gw + c * s->O * TAPS, *const rows[3] = {to, to + 3 * LANES, to + 6 * LANES};
                    for (long o = 0; o < s->O; ++o) {
                        const Entry *const begin = ends[o * MOST + k], *const end = ends[(o + 1) * MOST + k];
                        const Sums sums = NAME(sum)(0, 3, 1, begin, end, at_work + k * image + c, 0, line, depth);
                        NAME(add)(0, 3, 1, sums, rows, o * TAPS * LANES, LANES);
                    }
                }
        }
    free(at_work), free(lists), free(ends);
    return failed ? -1 : 0;
}

#undef Vector
#undef Entry
#undef Sums
#undef LANES
#endif
