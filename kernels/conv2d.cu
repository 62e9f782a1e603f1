// 2-D convolution (cross-correlation) with stride 1, and its gradients.
//
//   forward         y[n,o,p,q]  = b[o] + sum_{c,i,j} w[o,c,i,j] x[n,c,p+i-top,q+j-left], then max(., 0) if asked
//   input gradient  gx[n,c,r,s] = sum_{o,i,j} w[o,c,i,j] g[n,o,r-i+top,s-j+left], or 0 where x <= 0, if asked
//   weight gradient gw[o,c,i,j] = sum_{n,p,q} g[n,o,p,q] x[n,c,p+i-top,q+j-left]
//
// x (N,C,H,W), w (O,C,kh,kw), b (O,), y and g (N,O,P,Q); x and g are zero outside. top = left = 0 for "valid",
// (k-1)/2 for "same". The input gradient is the forward sum over g with flipped filters, O and C exchanged and
// k-1-top rows of zeros, so one kernel does both.
//
// In the order of reading:
//   correlate, weight_grad        the sums as they stand above, any kernel size: a thread an output, a block a weight
//   input_grad_one_channel        the input gradient for C = 1, where correlate3x3 would waste 31 of its 32 filters
//   correlate3x3, weight_grad3x3  the same sums for 3x3 kernels, many times faster
//
// The layer: LeCun et al., Gradient-based learning applied to document recognition (1998). Tiles in shared memory and
// registers as in Volkov & Demmel, Benchmarking GPUs to tune dense linear algebra (2008).
#include "common.cuh"

// What a kernel is told beside its arrays. minicnn/cuda.py builds each struct by the names of its fields, all int.
struct Convolution {
    int N, C, H, W, O, P, Q, kernel_height, kernel_width, top, left;
};

// One way through a convolution: x (N,C,H,W) is summed to y (N,O,P,Q), whatever the two are called outside.
struct Correlation : Convolution {
    int flipped;   // w is (C,O,kh,kw), and its taps are read backwards
    int epilogue;  // enum Epilogue of common.cuh

    __device__ long long place_in_w(int o, int c, int tap, int taps) const {
        return flipped ? ((long long)c * O + o + 1) * taps - 1 - tap : ((long long)o * C + c) * taps + tap;
    }
};

struct TiledCorrelation : Correlation {
    int block_images, patch_rows, patch_columns;  // a tile of y
    int split, chunk;                             // groups of threads that share the channels, channels at a time
};

struct TiledWeightGrad : Convolution {
    int block_channels, band_rows, band_columns;
    int g_plane, x_plane;  // distance of two filters, two channels in shared memory
};

static_assert(sizeof(Convolution) == 11 * sizeof(int), "not the struct of minicnn/cuda.py");
static_assert(sizeof(Correlation) == 13 * sizeof(int), "not the struct of minicnn/cuda.py");
static_assert(sizeof(TiledCorrelation) == 18 * sizeof(int), "not the struct of minicnn/cuda.py");
static_assert(sizeof(TiledWeightGrad) == 16 * sizeof(int), "not the struct of minicnn/cuda.py");

// What is stored of the sum at `place` of y. beside: the bias, or a mask of y's shape.
template <typename T>
__device__ __forceinline__ T stored(T sum, const T *beside, int o, long long place, int epilogue) {
    if (epilogue & MASK) return beside[place] <= 0 ? T(0) : sum;
    return finished(sum, beside, o, epilogue);
}

template <typename T>
__global__ void __launch_bounds__(256, 1)
    correlate(const T *__restrict__ x, const T *__restrict__ w, const T *__restrict__ beside, T *__restrict__ y,
              Correlation s) {
    const long long output = blockIdx.x * 256LL + threadIdx.x, plane = (long long)s.P * s.Q;
    if (output >= (long long)s.N * s.O * plane) return;
    const int q = output % s.Q, p = output / s.Q % s.P, o = output / plane % s.O;
    x += output / (plane * s.O) * s.C * s.H * s.W;
    T sum = 0;
    for (int c = 0; c < s.C; ++c)
        for (int i = 0; i < s.kernel_height; ++i)
            for (int j = 0; j < s.kernel_width; ++j) {
                const int row = p + i - s.top, column = q + j - s.left;
                if (row < 0 || row >= s.H || column < 0 || column >= s.W) continue;
                const int tap = i * s.kernel_width + j, taps = s.kernel_height * s.kernel_width;
                sum += w[s.place_in_w(o, c, tap, taps)] * x[((long long)c * s.H + row) * s.W + column];
            }
    y[output] = stored(sum, beside, o, output, s.epilogue);
}

template <typename T>
__global__ void __launch_bounds__(256)
    weight_grad(const T *__restrict__ x, const T *__restrict__ g, T *__restrict__ gw, Convolution s) {
    __shared__ T scratch[256];
    const int weight = blockIdx.x, j = weight % s.kernel_width, i = weight / s.kernel_width % s.kernel_height;
    const int filter_channel = weight / (s.kernel_width * s.kernel_height), c = filter_channel % s.C;
    const int o = filter_channel / s.C;
    T sum = 0;
    for (int n = 0; n < s.N; ++n) {
        const T *const g_plane = g + ((long long)n * s.O + o) * s.P * s.Q;
        const T *const x_plane = x + ((long long)n * s.C + c) * s.H * s.W;
        for (int pixel = threadIdx.x; pixel < s.P * s.Q; pixel += 256) {
            const int row = pixel / s.Q + i - s.top, column = pixel % s.Q + j - s.left;
            if (row < 0 || row >= s.H || column < 0 || column >= s.W) continue;
            sum += g_plane[pixel] * x_plane[row * s.W + column];
        }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) gw[weight] = sum;
}

// The last step to N saliency maps. A thread takes a strip of STRIP pixels of a column, its neighbour that beside it, so
// that what it reads of g serves up to STRIP sums and a warp reads whole lines. SIZE: of the filters, 0 for any.
constexpr int STRIP = 4;

template <typename T, int SIZE>
__global__ void __launch_bounds__(256, 1)
    input_grad_one_channel(const T *__restrict__ g, const T *__restrict__ w, T *__restrict__ gx, Convolution s) {
    const int height = SIZE ? SIZE : s.kernel_height, width = SIZE ? SIZE : s.kernel_width;
    const long long strip = blockIdx.x * 256LL + threadIdx.x, strips = (s.H + STRIP - 1) / STRIP * (long long)s.W;
    if (strip >= s.N * strips) return;
    const int first_row = strip % strips / s.W * STRIP, column = strip % s.W;
    g += strip / strips * s.O * s.P * s.Q;
    gx += (strip / strips * s.H + first_row) * s.W + column;
    T sums[STRIP] = {};
    for (int o = 0; o < s.O; ++o)
#pragma unroll
        for (int k = 0; k < STRIP - 1 + height; ++k) {
            const int row = first_row + s.top + STRIP - 1 - k;
            if (row < 0 || row >= s.P) continue;
            const T *const from = g + ((long long)o * s.P + row) * s.Q + column + s.left;
#pragma unroll
            for (int j = 0; j < width; ++j) {
                if (column + s.left < j || column + s.left - j >= s.Q) continue;
#pragma unroll
                for (int m = 0; m < STRIP; ++m) {
                    const int i = k + m - (STRIP - 1);
                    if (i >= 0 && i < height) sums[m] += w[(o * height + i) * width + j] * from[-j];
                }
            }
        }
#pragma unroll
    for (int m = 0; m < STRIP; ++m)
        if (first_row + m < s.H) gx[(long long)m * s.W] = sums[m];
}

// correlate3x3. A block computes 32 filters on a tile of 2x2 patches, of one image or of several small ones; a thread
// computes 8 filters x 1 patch. Threads 4p..4p+3 share patch p, so that a warp reads 4 filter groups and 8 patches from
// shared memory. Channels come in chunks, the next one copied while this one is multiplied. Where patches are few,
// `split` groups of threads take every split-th channel each, and are added up in order.

constexpr int TAPS = 9;
constexpr int BLOCK_FILTERS = 32;
constexpr int THREAD_FILTERS = 8;
constexpr int FILTER_GROUPS = BLOCK_FILTERS / THREAD_FILTERS;
constexpr int FILTER_PITCH = BLOCK_FILTERS + 4;  // keeps rows aligned for Quad and spreads the copies over the banks

// Blocks of floats on a multiprocessor: for two the compiler has 80 registers a thread, enough on these alone.
#if __CUDA_ARCH__ == 900
constexpr int FLOAT_BLOCKS = 2;
#else
constexpr int FLOAT_BLOCKS = 1;
#endif

// The part of y that a block computes, and its shared memory.
template <typename T>
struct Tile {
    int first_image, first_filter, first_row, first_column;
    int rows, pitch, plane;  // of the pixels that it needs: of an image, and of all images for one channel
    T *filters;              // [2][chunk][TAPS][FILTER_PITCH]
    T *pixels;               // [2][chunk][plane]
    int *offsets;            // [plane], where they lie in x, counted from first_image; -1 outside the image

    __device__ __forceinline__ Tile(const TiledCorrelation &s, char *memory) {
        const int tiles_across = (s.Q + 2 * s.patch_columns - 1) / (2 * s.patch_columns);
        const int tiles = (s.P + 2 * s.patch_rows - 1) / (2 * s.patch_rows) * tiles_across;
        const int block = blockIdx.x, tile = block % tiles;
        first_image = block / tiles * s.block_images;
        first_filter = blockIdx.y * BLOCK_FILTERS;
        first_row = tile / tiles_across * 2 * s.patch_rows;
        first_column = tile % tiles_across * 2 * s.patch_columns;
        rows = 2 * s.patch_rows + 2;
        pitch = 2 * s.patch_columns + 2;
        plane = s.block_images * rows * pitch;
        filters = reinterpret_cast<T *>(memory);
        pixels = filters + 2 * s.chunk * TAPS * FILTER_PITCH;
        offsets = reinterpret_cast<int *>(pixels + 2 * s.chunk * plane);
    }
};

// The filters and the patch of y that a thread computes: it adds them up over the channels of its group.
struct Part {
    int group_threads, group, member;
    int filter, image, patch_row, patch_column;

    __device__ __forceinline__ explicit Part(const TiledCorrelation &s) {
        group_threads = blockDim.x / s.split;
        group = threadIdx.x / group_threads;
        member = threadIdx.x % group_threads;
        filter = member % FILTER_GROUPS * THREAD_FILTERS;
        const int patch = member / FILTER_GROUPS;
        patch_column = patch % s.patch_columns;
        patch_row = patch / s.patch_columns % s.patch_rows;
        image = patch / (s.patch_columns * s.patch_rows);
    }
};

// Where the tile's pixels lie in x: the same for every channel. A thread reads back only what it has written itself.
template <typename T>
__device__ __forceinline__ void find_pixels(const Tile<T> &tile, const TiledCorrelation &s) {
    const long long image_size = (long long)s.C * s.H * s.W;
    for (int i = threadIdx.x; i < tile.plane; i += blockDim.x) {
        const int image = i / (tile.rows * tile.pitch);
        const int row = tile.first_row + i / tile.pitch % tile.rows - s.top;
        const int column = tile.first_column + i % tile.pitch - s.left;
        const bool inside = tile.first_image + image < s.N && row >= 0 && row < s.H && column >= 0 && column < s.W;
        tile.offsets[i] = inside ? (int)(image * image_size) + row * s.W + column : -1;
    }
}

// Start to copy a chunk of channels: pixels from x, which begins at the tile's first image, and filters from w.
template <typename T>
__device__ __forceinline__ void copy_chunk(const Tile<T> &tile, const TiledCorrelation &s, const T *x, const T *w,
                                           int first_channel, int buffer) {
    const int channels = min(s.chunk, s.C - first_channel), thread = threadIdx.x, threads = blockDim.x;
    T *const to_pixels = tile.pixels + buffer * s.chunk * tile.plane;
    T *const to_filters = tile.filters + buffer * s.chunk * TAPS * FILTER_PITCH;
    for (int i = thread; i < tile.plane; i += threads) {
        const int offset = tile.offsets[i];
        const T *source = x + (long long)first_channel * s.H * s.W + max(offset, 0);
        for (int c = 0; c < channels; ++c, source += (long long)s.H * s.W)
            copy_async(to_pixels + c * tile.plane + i, source, offset >= 0);
    }
    const long long channel = s.flipped ? (long long)s.O * TAPS : TAPS;
    for (int i = thread; i < BLOCK_FILTERS * TAPS; i += threads) {
        const int tap = i % TAPS, f = i / TAPS;
        const bool inside = tile.first_filter + f < s.O;
        const T *source = w + s.place_in_w(inside ? tile.first_filter + f : 0, first_channel, tap, TAPS);
        for (int c = 0; c < channels; ++c, source += channel)
            copy_async(to_filters + (c * TAPS + tap) * FILTER_PITCH + f, source, inside);
    }
}

// sums[f][row][column] += what one channel gives: 8 filters on 4x4 pixels, for the 2x2 outputs of a patch.
template <typename T>
__device__ __forceinline__ void multiply_channel(T (&sums)[THREAD_FILTERS][2][2], const T *pixels, int pitch,
                                                 const T *filters) {
    T in[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Pair<T> a = *reinterpret_cast<const Pair<T> *>(pixels + i * pitch);
        const Pair<T> b = *reinterpret_cast<const Pair<T> *>(pixels + i * pitch + 2);
        in[i][0] = a.v[0], in[i][1] = a.v[1], in[i][2] = b.v[0], in[i][3] = b.v[1];
    }
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) {
#pragma unroll
        for (int four = 0; four < THREAD_FILTERS; four += 4) {
            const Quad<T> k = *reinterpret_cast<const Quad<T> *>(filters + tap * FILTER_PITCH + four);
#pragma unroll
            for (int f = 0; f < 4; ++f)
#pragma unroll
                for (int pixel = 0; pixel < 4; ++pixel)
                    sums[four + f][pixel / 2][pixel % 2] += k.v[f] * in[pixel / 2 + tap / 3][pixel % 2 + tap % 3];
        }
    }
}

// Group 0 gets the sums of all groups. exchange: [THREAD_FILTERS * 4][group_threads], in memory no longer needed.
template <typename T>
__device__ __forceinline__ void add_up_groups(T (&sums)[THREAD_FILTERS][2][2], T *exchange, const Part &part,
                                              int split) {
    for (int from = 1; from < split; ++from) {
        __syncthreads();
        if (part.group == from)
#pragma unroll
            for (int k = 0; k < THREAD_FILTERS * 4; ++k)
                exchange[k * part.group_threads + part.member] = sums[k / 4][k / 2 % 2][k % 2];
        __syncthreads();
        if (part.group == 0)
#pragma unroll
            for (int k = 0; k < THREAD_FILTERS * 4; ++k)
                sums[k / 4][k / 2 % 2][k % 2] += exchange[k * part.group_threads + part.member];
    }
}

template <typename T>
__device__ __forceinline__ void store_patch(T (&sums)[THREAD_FILTERS][2][2], T *y, const T *beside, const Tile<T> &tile,
                                            const Part &part, const TiledCorrelation &s) {
    const int first_filter = tile.first_filter + part.filter, first_row = tile.first_row + 2 * part.patch_row;
    const int column = tile.first_column + 2 * part.patch_column;
    const long long corner =
        (((long long)(tile.first_image + part.image) * s.O + first_filter) * s.P + first_row) * s.Q + column;
    if (column >= s.Q) return;
#pragma unroll
    for (int k = 0; k < THREAD_FILTERS * 2; ++k) {
        const int f = k / 2, i = k % 2;
        if (first_filter + f >= s.O || first_row + i >= s.P) continue;
        const long long place = corner + (long long)f * s.P * s.Q + i * s.Q;
        const bool both = column + 1 < s.Q;
        const Pair<T> out = {stored(sums[f][i][0], beside, first_filter + f, place, s.epilogue),
                             stored(sums[f][i][1], beside, first_filter + f, place + both, s.epilogue)};
        if (s.Q % 2 == 0) {
            *reinterpret_cast<Pair<T> *>(y + place) = out;
        } else {
            y[place] = out.v[0];
            if (both) y[place + 1] = out.v[1];
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(384, sizeof(T) == 4 ? FLOAT_BLOCKS : 1)
    correlate3x3(const T *__restrict__ x, const T *__restrict__ w, const T *__restrict__ beside, T *__restrict__ y,
                 TiledCorrelation s) {
    extern __shared__ __align__(32) char memory[];
    const Tile<T> tile(s, memory);
    const Part part(s);
    x += (long long)tile.first_image * s.C * s.H * s.W;
    find_pixels(tile, s);

    T sums[THREAD_FILTERS][2][2] = {};
    const int corner = (part.image * tile.rows + 2 * part.patch_row) * tile.pitch + 2 * part.patch_column;
    copy_chunk(tile, s, x, w, 0, 0);
    for (int first_channel = 0, buffer = 0; first_channel < s.C; first_channel += s.chunk, buffer ^= 1) {
        copies_landed();
        __syncthreads();
        if (first_channel + s.chunk < s.C) copy_chunk(tile, s, x, w, first_channel + s.chunk, buffer ^ 1);
        const int channels = min(s.chunk, s.C - first_channel);
        for (int c = part.group; c < channels; c += s.split) {
            const int place = buffer * s.chunk + c;
            multiply_channel(sums, tile.pixels + place * tile.plane + corner, tile.pitch,
                             tile.filters + place * TAPS * FILTER_PITCH + part.filter);
        }
    }
    add_up_groups(sums, tile.filters, part, s.split);
    if (part.group == 0 && tile.first_image + part.image < s.N) store_patch(sums, y, beside, tile, part, s);
}

// weight_grad3x3. An implicit matrix product over the pixels: a block of 256 threads takes 32 filters x block_channels
// channels and one part of the (image, band of rows) list; a thread 4 filters x 1 channel x 9 taps. With fewer than 32
// channels the remaining threads form teams, which share the strips of 4 pixels and are added up in order. The parts
// are summed by sum_parts (reduce.cu).
//
// band_columns is a multiple of 4, block_channels a power of two; g_plane and x_plane are odd multiples of 4: aligned
// for Quad, and 8 neighbours lie in different banks.

constexpr int GRAD_THREADS = 256;
constexpr int GRAD_FILTERS = 4;  // a thread: filters f, f + 8, f + 16, f + 24
constexpr int GRAD_GROUPS = BLOCK_FILTERS / GRAD_FILTERS;
constexpr int COPY_LANES = 64;

// The filters, channels and (image, band) units of a block, and its shared memory.
template <typename T>
struct Slice {
    int first_filter, first_channel, first_unit, last_unit;
    int bands_across, bands, pitch;
    T *grads;   // [2][BLOCK_FILTERS][g_plane]
    T *pixels;  // [2][block_channels][x_plane]

    __device__ __forceinline__ Slice(const TiledWeightGrad &s, char *memory) {
        const int filter_blocks = (s.O + BLOCK_FILTERS - 1) / BLOCK_FILTERS;
        first_filter = blockIdx.x % filter_blocks * BLOCK_FILTERS;
        first_channel = blockIdx.x / filter_blocks * s.block_channels;
        bands_across = (s.Q + s.band_columns - 1) / s.band_columns;
        bands = (s.P + s.band_rows - 1) / s.band_rows * bands_across;
        const long long units = (long long)s.N * bands;
        first_unit = units * blockIdx.y / gridDim.y;
        last_unit = units * (blockIdx.y + 1) / gridDim.y;
        pitch = s.band_columns + 4;
        grads = reinterpret_cast<T *>(memory);
        pixels = grads + 2 * BLOCK_FILTERS * s.g_plane;
    }
};

// Start to copy the band of a unit from g and x.
template <typename T>
__device__ __forceinline__ void copy_band(const Slice<T> &slice, const TiledWeightGrad &s, const T *x, const T *g,
                                          int unit, int buffer) {
    const int image = unit / slice.bands, band = unit % slice.bands;
    const int first_row = band / slice.bands_across * s.band_rows;
    const int first_column = band % slice.bands_across * s.band_columns;
    const int lane = threadIdx.x % COPY_LANES, line = threadIdx.x / COPY_LANES, lines = GRAD_THREADS / COPY_LANES;
    const long long g_size = (long long)s.P * s.Q, x_size = (long long)s.H * s.W;
    const T *const g_image = g + ((long long)image * s.O + slice.first_filter + line) * g_size;
    const T *const x_image = x + ((long long)image * s.C + slice.first_channel + line) * x_size;
    for (int i = lane; i < s.band_rows * s.band_columns; i += COPY_LANES) {
        const int row = first_row + i / s.band_columns, column = first_column + i % s.band_columns;
        const bool inside = row < s.P && column < s.Q;
        const T *source = g_image + row * s.Q + column;
        for (int o = line; o < BLOCK_FILTERS; o += lines, source += lines * g_size) {
            const bool valid = inside && slice.first_filter + o < s.O;
            copy_async(slice.grads + (buffer * BLOCK_FILTERS + o) * s.g_plane + i, valid ? source : g, valid);
        }
    }
    for (int i = lane; i < (s.band_rows + 2) * slice.pitch; i += COPY_LANES) {
        const int row = first_row + i / slice.pitch - s.top, column = first_column + i % slice.pitch - s.left;
        const bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
        const T *source = x_image + row * s.W + column;
        for (int c = line; c < s.block_channels; c += lines, source += lines * x_size) {
            const bool valid = inside && slice.first_channel + c < s.C;
            copy_async(slice.pixels + (buffer * s.block_channels + c) * s.x_plane + i, valid ? source : x, valid);
        }
    }
}

// sums[f][tap] += what a strip of 4 pixels gives: 4 filters of g times 3x6 pixels of x.
template <typename T>
__device__ __forceinline__ void multiply_strip(T (&sums)[GRAD_FILTERS][TAPS], const T *grads, int g_plane,
                                               const T *pixels, int pitch) {
    Quad<T> grad[GRAD_FILTERS];
#pragma unroll
    for (int f = 0; f < GRAD_FILTERS; ++f)
        grad[f] = *reinterpret_cast<const Quad<T> *>(grads + f * GRAD_GROUPS * g_plane);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const Quad<T> a = *reinterpret_cast<const Quad<T> *>(pixels + i * pitch);
        const Pair<T> b = *reinterpret_cast<const Pair<T> *>(pixels + i * pitch + 4);
        const T in[6] = {a.v[0], a.v[1], a.v[2], a.v[3], b.v[0], b.v[1]};
#pragma unroll
        for (int f = 0; f < GRAD_FILTERS; ++f)
#pragma unroll
            for (int j = 0; j < 3; ++j)
#pragma unroll
                for (int pixel = 0; pixel < 4; ++pixel) sums[f][3 * i + j] += grad[f].v[pixel] * in[pixel + j];
    }
}

// Team 0 gets the sums of all teams, by halves. exchange: [GRAD_FILTERS * TAPS][half * team_threads].
template <typename T>
__device__ __forceinline__ void add_up_teams(T (&sums)[GRAD_FILTERS][TAPS], T *exchange, int teams, int team_threads) {
    const int thread = threadIdx.x;
    for (int half = teams / 2; half; half /= 2) {
        const int senders = half * team_threads;
        __syncthreads();
        if (thread >= senders && thread < 2 * senders)
#pragma unroll
            for (int k = 0; k < GRAD_FILTERS * TAPS; ++k)
                exchange[k * senders + thread - senders] = sums[k / TAPS][k % TAPS];
        __syncthreads();
        if (thread < senders)
#pragma unroll
            for (int k = 0; k < GRAD_FILTERS * TAPS; ++k) sums[k / TAPS][k % TAPS] += exchange[k * senders + thread];
    }
}

template <typename T>
__global__ void __launch_bounds__(GRAD_THREADS, 1)
    weight_grad3x3(const T *__restrict__ x, const T *__restrict__ g, T *__restrict__ parts, TiledWeightGrad s) {
    extern __shared__ __align__(32) char memory[];
    const Slice<T> slice(s, memory);
    const int thread = threadIdx.x, filter = thread % GRAD_GROUPS, channel = thread / GRAD_GROUPS % s.block_channels;
    const int team_threads = GRAD_GROUPS * s.block_channels, team = thread / team_threads;
    const int teams = GRAD_THREADS / team_threads, strips = s.band_columns / 4;

    T sums[GRAD_FILTERS][TAPS] = {};
    copy_band(slice, s, x, g, slice.first_unit, 0);
    int buffer = 0;
    for (int unit = slice.first_unit; unit < slice.last_unit; ++unit, buffer ^= 1) {
        copies_landed();
        __syncthreads();
        if (unit + 1 < slice.last_unit) copy_band(slice, s, x, g, unit + 1, buffer ^ 1);
        const T *const grads = slice.grads + (buffer * BLOCK_FILTERS + filter) * s.g_plane;
        const T *const pixels = slice.pixels + (buffer * s.block_channels + channel) * s.x_plane;
        for (int row = team / strips, strip = team % strips; row < s.band_rows;) {
            multiply_strip(sums, grads + row * s.band_columns + 4 * strip, s.g_plane,
                           pixels + row * slice.pitch + 4 * strip, slice.pitch);
            for (strip += teams; strip >= strips; strip -= strips) ++row;
        }
    }
    add_up_teams(sums, slice.grads, teams, team_threads);
    if (team || slice.first_channel + channel >= s.C) return;
#pragma unroll
    for (int f = 0; f < GRAD_FILTERS; ++f) {
        const int o = slice.first_filter + filter + f * GRAD_GROUPS;
        if (o >= s.O) continue;
        T *const to = parts + (((long long)blockIdx.y * s.O + o) * s.C + slice.first_channel + channel) * TAPS;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) to[tap] = sums[f][tap];
    }
}
