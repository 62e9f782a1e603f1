// 2-D convolution (cross-correlation) with stride 1, and its gradients.
//
//   forward         y[n,o,p,q]  = b[o] + sum_{c,i,j} w[o,c,i,j] x[n,c,p+i-top,q+j-left], then max(., 0) if asked
//   input gradient  gx[n,c,r,s] = sum_{o,i,j} w[o,c,i,j] g[n,o,r-i+top,s-j+left]
//   weight gradient gw[o,c,i,j] = sum_{n,p,q} g[n,o,p,q] x[n,c,p+i-top,q+j-left]
//
// x (N,C,H,W), w (O,C,kh,kw), b (O,), y and g (N,O,P,Q); x and g are zero outside. top = left = 0 for "valid",
// (k-1)/2 for "same". The input gradient is the forward sum over g with flipped filters, O and C exchanged and
// k-1-top rows of zeros, so one kernel does both: it reads filter f, channel c at w + f*filter_stride +
// c*channel_stride, backwards if flipped.
//
// correlate3x3 (3x3 kernels): a block computes 32 filters on a tile of 2x2 patches, of one image or of several small
//   ones; a thread computes 8 filters x 1 patch. Threads 4p..4p+3 share patch p, so that a warp reads 4 filter groups
//   and 8 patches from shared memory. Channels come in chunks, the next one copied while this one is multiplied.
//   Where patches are few, `split` groups of threads take every split-th channel and are added up in order.
// weight_grad3x3: an implicit matrix product over the pixels. A block of 256 threads takes 32 filters x
//   block_channels channels and one part of the (image, band of rows) list; a thread 4 filters x 1 channel x 9 taps.
//   With fewer than 32 channels the remaining threads share the strips of 4 pixels, and are added up in order. The
//   parts are summed by sum_parts (reduce.cu).
// correlate, weight_grad: any kernel size; a thread an output, a block a weight.
//
// The layer: LeCun et al., Gradient-based learning applied to document recognition (1998). Tiles in shared memory and
// registers as in Volkov & Demmel, Benchmarking GPUs to tune dense linear algebra (2008).
#include "common.cuh"

constexpr int TAPS = 9;
constexpr int BLOCK_FILTERS = 32;

constexpr int THREAD_FILTERS = 8;
constexpr int FILTER_GROUPS = BLOCK_FILTERS / THREAD_FILTERS;
constexpr int FILTER_PITCH = BLOCK_FILTERS + 4;  // keeps rows aligned for Quad and spreads the copies over the banks

template <typename T>
__global__ void __launch_bounds__(384, 1)
    correlate3x3(const T *__restrict__ x, const T *__restrict__ w, const T *__restrict__ bias, T *__restrict__ y, int N,
                 int C, int H, int W, int O, int P, int Q, int top, int left, int filter_stride, int channel_stride,
                 int flipped, int epilogue, int block_images, int patch_rows, int patch_columns, int split, int chunk) {
    extern __shared__ __align__(32) char memory[];
    const int thread = threadIdx.x, threads = blockDim.x;
    const int rows = 2 * patch_rows + 2, pitch = 2 * patch_columns + 2, plane = block_images * rows * pitch;
    T *const filters = reinterpret_cast<T *>(memory);                // [2][chunk][TAPS][FILTER_PITCH]
    T *const pixels = filters + 2 * chunk * TAPS * FILTER_PITCH;     // [2][chunk][plane]
    int *const offsets = reinterpret_cast<int *>(pixels + 2 * chunk * plane);  // [plane], -1 outside the image

    const int tiles_across = (Q + 2 * patch_columns - 1) / (2 * patch_columns);
    const int tiles = (P + 2 * patch_rows - 1) / (2 * patch_rows) * tiles_across;
    const int block = blockIdx.x, tile = block % tiles, first_image = block / tiles * block_images;
    const int first_row = tile / tiles_across * 2 * patch_rows, first_column = tile % tiles_across * 2 * patch_columns;
    const int first_filter = blockIdx.y * BLOCK_FILTERS;
    const long long image_size = (long long)C * H * W;
    x += first_image * image_size;

    for (int i = thread; i < plane; i += threads) {  // the same for every channel; a thread reads back only its own
        const int image = i / (rows * pitch);
        const int row = first_row + i / pitch % rows - top, column = first_column + i % pitch - left;
        const bool inside = first_image + image < N && row >= 0 && row < H && column >= 0 && column < W;
        offsets[i] = inside ? (int)(image * image_size) + row * W + column : -1;
    }

    auto stage = [&](int first_channel, int buffer) {
        const int channels = min(chunk, C - first_channel);
        T *const to_pixels = pixels + buffer * chunk * plane;
        T *const to_filters = filters + buffer * chunk * TAPS * FILTER_PITCH;
        for (int i = thread; i < plane; i += threads) {
            const int offset = offsets[i];
            const T *source = x + (long long)first_channel * H * W + max(offset, 0);
            for (int c = 0; c < channels; ++c, source += (long long)H * W)
                copy_async(to_pixels + c * plane + i, source, offset >= 0);
        }
        for (int i = thread; i < channels * BLOCK_FILTERS * TAPS; i += threads) {
            const int tap = i % TAPS, f = i / TAPS % BLOCK_FILTERS, c = i / (TAPS * BLOCK_FILTERS);
            const bool inside = first_filter + f < O;
            const T *source = w + (long long)(inside ? first_filter + f : 0) * filter_stride +
                              (long long)(first_channel + c) * channel_stride + (flipped ? TAPS - 1 - tap : tap);
            copy_async(to_filters + (c * TAPS + tap) * FILTER_PITCH + f, source, inside);
        }
    };

    const int group_threads = threads / split, group = thread / group_threads, member = thread % group_threads;
    const int filter = member % FILTER_GROUPS * THREAD_FILTERS, patch = member / FILTER_GROUPS;
    const int patch_column = patch % patch_columns, patch_row = patch / patch_columns % patch_rows;
    const int image = patch / (patch_columns * patch_rows);
    const int corner = (image * rows + 2 * patch_row) * pitch + 2 * patch_column;

    T sums[THREAD_FILTERS][2][2] = {};
    stage(0, 0);
    for (int first_channel = 0, buffer = 0; first_channel < C; first_channel += chunk, buffer ^= 1) {
        copies_landed();
        __syncthreads();
        if (first_channel + chunk < C) stage(first_channel + chunk, buffer ^ 1);
        const int channels = min(chunk, C - first_channel);
        for (int c = group; c < channels; c += split) {
            const T *const from = pixels + (buffer * chunk + c) * plane + corner;
            const T *const taps = filters + (buffer * chunk + c) * TAPS * FILTER_PITCH + filter;
            T in[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const Pair<T> a = *reinterpret_cast<const Pair<T> *>(from + i * pitch);
                const Pair<T> b = *reinterpret_cast<const Pair<T> *>(from + i * pitch + 2);
                in[i][0] = a.v[0], in[i][1] = a.v[1], in[i][2] = b.v[0], in[i][3] = b.v[1];
            }
#pragma unroll
            for (int tap = 0; tap < TAPS; ++tap) {
#pragma unroll
                for (int four = 0; four < THREAD_FILTERS; four += 4) {
                    const Quad<T> k = *reinterpret_cast<const Quad<T> *>(taps + tap * FILTER_PITCH + four);
#pragma unroll
                    for (int f = 0; f < 4; ++f)
#pragma unroll
                        for (int pixel = 0; pixel < 4; ++pixel)
                            sums[four + f][pixel / 2][pixel % 2] += k.v[f] * in[pixel / 2 + tap / 3][pixel % 2 + tap % 3];
                }
            }
        }
    }

    T *const exchange = filters;  // [THREAD_FILTERS * 4][group_threads]
    for (int from = 1; from < split; ++from) {
        __syncthreads();
        if (group == from)
#pragma unroll
            for (int k = 0; k < THREAD_FILTERS * 4; ++k)
                exchange[k * group_threads + member] = sums[k / 4][k / 2 % 2][k % 2];
        __syncthreads();
        if (group == 0)
#pragma unroll
            for (int k = 0; k < THREAD_FILTERS * 4; ++k)
                sums[k / 4][k / 2 % 2][k % 2] += exchange[k * group_threads + member];
    }
    if (group || first_image + image >= N) return;

    const int column = first_column + 2 * patch_column;
#pragma unroll
    for (int k = 0; k < THREAD_FILTERS * 2; ++k) {
        const int o = first_filter + filter + k / 2, row = first_row + 2 * patch_row + k % 2;
        if (o >= O || row >= P || column >= Q) continue;
        const Pair<T> out = {finished(sums[k / 2][k % 2][0], bias, o, epilogue),
                             finished(sums[k / 2][k % 2][1], bias, o, epilogue)};
        T *const to = y + (((long long)(first_image + image) * O + o) * P + row) * Q + column;
        if (Q % 2 == 0) {
            *reinterpret_cast<Pair<T> *>(to) = out;
        } else {
            to[0] = out.v[0];
            if (column + 1 < Q) to[1] = out.v[1];
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
    correlate(const T *__restrict__ x, const T *__restrict__ w, const T *__restrict__ bias, T *__restrict__ y,
              long long outputs, int C, int H, int W, int O, int P, int Q, int kernel_height, int kernel_width, int top,
              int left, int filter_stride, int channel_stride, int flipped, int epilogue) {
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i >= outputs) return;
    const int q = i % Q, p = i / Q % P, o = i / ((long long)Q * P) % O;
    x += i / ((long long)Q * P * O) * C * H * W;
    w += (long long)o * filter_stride;
    const int taps = kernel_height * kernel_width;
    T sum = 0;
    for (int c = 0; c < C; ++c)
        for (int tap = 0; tap < taps; ++tap) {
            const int row = p + tap / kernel_width - top, column = q + tap % kernel_width - left;
            if (row >= 0 && row < H && column >= 0 && column < W)
                sum += w[(long long)c * channel_stride + (flipped ? taps - 1 - tap : tap)] *
                       x[((long long)c * H + row) * W + column];
        }
    y[i] = finished(sum, bias, o, epilogue);
}

constexpr int GRAD_THREADS = 256;
constexpr int GRAD_FILTERS = 4;                             // a thread: filters f, f + 8, f + 16, f + 24
constexpr int GRAD_GROUPS = BLOCK_FILTERS / GRAD_FILTERS;
constexpr int COPY_LANES = 64;

// band_columns is a multiple of 4, block_channels a power of two. g_plane and x_plane, the distance of two filters or
// channels in shared memory, are odd multiples of 4: aligned for Quad, and 8 neighbours lie in different banks.
template <typename T>
__global__ void __launch_bounds__(GRAD_THREADS, 1)
    weight_grad3x3(const T *__restrict__ x, const T *__restrict__ g, T *__restrict__ parts, int N, int C, int H, int W,
                   int O, int P, int Q, int top, int left, int block_channels, int band_rows, int band_columns,
                   int g_plane, int x_plane) {
    extern __shared__ __align__(32) char memory[];
    T *const grads = reinterpret_cast<T *>(memory);            // [2][BLOCK_FILTERS][g_plane]
    T *const pixels = grads + 2 * BLOCK_FILTERS * g_plane;     // [2][block_channels][x_plane]
    const int thread = threadIdx.x, pitch = band_columns + 4;
    const int filter_blocks = (O + BLOCK_FILTERS - 1) / BLOCK_FILTERS;
    const int first_filter = blockIdx.x % filter_blocks * BLOCK_FILTERS;
    const int first_channel = blockIdx.x / filter_blocks * block_channels;
    const int bands_across = (Q + band_columns - 1) / band_columns, bands = (P + band_rows - 1) / band_rows * bands_across;
    const long long units = (long long)N * bands;
    const int first_unit = units * blockIdx.y / gridDim.y, last_unit = units * (blockIdx.y + 1) / gridDim.y;

    auto stage = [&](int unit, int buffer) {
        const int image = unit / bands, band = unit % bands;
        const int first_row = band / bands_across * band_rows, first_column = band % bands_across * band_columns;
        const T *const g_image = g + ((long long)image * O + first_filter) * P * Q;
        const T *const x_image = x + ((long long)image * C + first_channel) * H * W;
        const int lane = thread % COPY_LANES, line = thread / COPY_LANES, lines = GRAD_THREADS / COPY_LANES;
        for (int i = lane; i < band_rows * band_columns; i += COPY_LANES) {
            const int row = first_row + i / band_columns, column = first_column + i % band_columns;
            const bool inside = row < P && column < Q;
            for (int o = line; o < BLOCK_FILTERS; o += lines) {
                const bool valid = inside && first_filter + o < O;
                copy_async(grads + (buffer * BLOCK_FILTERS + o) * g_plane + i,
                           valid ? g_image + ((long long)o * P + row) * Q + column : g, valid);
            }
        }
        for (int i = lane; i < (band_rows + 2) * pitch; i += COPY_LANES) {
            const int row = first_row + i / pitch - top, column = first_column + i % pitch - left;
            const bool inside = row >= 0 && row < H && column >= 0 && column < W;
            for (int c = line; c < block_channels; c += lines) {
                const bool valid = inside && first_channel + c < C;
                copy_async(pixels + (buffer * block_channels + c) * x_plane + i,
                           valid ? x_image + ((long long)c * H + row) * W + column : x, valid);
            }
        }
    };

    const int filter = thread % GRAD_GROUPS, channel = thread / GRAD_GROUPS % block_channels;
    const int team_threads = GRAD_GROUPS * block_channels, team = thread / team_threads;
    const int teams = GRAD_THREADS / team_threads, strips = band_columns / 4;

    T sums[GRAD_FILTERS][TAPS] = {};
    stage(first_unit, 0);
    int buffer = 0;
    for (int unit = first_unit; unit < last_unit; ++unit, buffer ^= 1) {
        copies_landed();
        __syncthreads();
        if (unit + 1 < last_unit) stage(unit + 1, buffer ^ 1);
        const T *const g_from = grads + (buffer * BLOCK_FILTERS + filter) * g_plane;
        const T *const x_from = pixels + (buffer * block_channels + channel) * x_plane;
        for (int row = team / strips, strip = team % strips; row < band_rows;) {
            Quad<T> grad[GRAD_FILTERS];
#pragma unroll
            for (int f = 0; f < GRAD_FILTERS; ++f)
                grad[f] = *reinterpret_cast<const Quad<T> *>(g_from + f * GRAD_GROUPS * g_plane + row * band_columns +
                                                             4 * strip);
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                const T *const from = x_from + (row + i) * pitch + 4 * strip;
                const Quad<T> a = *reinterpret_cast<const Quad<T> *>(from);
                const Pair<T> b = *reinterpret_cast<const Pair<T> *>(from + 4);
                const T in[6] = {a.v[0], a.v[1], a.v[2], a.v[3], b.v[0], b.v[1]};
#pragma unroll
                for (int f = 0; f < GRAD_FILTERS; ++f)
#pragma unroll
                    for (int j = 0; j < 3; ++j)
#pragma unroll
                        for (int pixel = 0; pixel < 4; ++pixel) sums[f][3 * i + j] += grad[f].v[pixel] * in[pixel + j];
            }
            for (strip += teams; strip >= strips; strip -= strips) ++row;
        }
    }

    T *const exchange = grads;  // [GRAD_FILTERS * TAPS][half * team_threads]
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
    if (team || first_channel + channel >= C) return;
#pragma unroll
    for (int f = 0; f < GRAD_FILTERS; ++f) {
        const int o = first_filter + filter + f * GRAD_GROUPS;
        if (o >= O) continue;
        T *const to = parts + (((long long)blockIdx.y * O + o) * C + first_channel + channel) * TAPS;
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) to[tap] = sums[f][tap];
    }
}

template <typename T>
__global__ void __launch_bounds__(256)
    weight_grad(const T *__restrict__ x, const T *__restrict__ g, T *__restrict__ gw, int N, int C, int H, int W, int O,
                int P, int Q, int kernel_height, int kernel_width, int top, int left) {
    __shared__ T scratch[256];
    const int weight = blockIdx.x, taps = kernel_height * kernel_width;
    const int tap = weight % taps, c = weight / taps % C, o = weight / (taps * C);
    T sum = 0;
    for (int n = 0; n < N; ++n) {
        const T *const g_plane = g + ((long long)n * O + o) * P * Q;
        const T *const x_plane = x + ((long long)n * C + c) * H * W;
        for (int i = threadIdx.x; i < P * Q; i += 256) {
            const int row = i / Q + tap / kernel_width - top, column = i % Q + tap % kernel_width - left;
            if (row >= 0 && row < H && column >= 0 && column < W) sum += g_plane[i] * x_plane[row * W + column];
        }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) gw[weight] = sum;
}
