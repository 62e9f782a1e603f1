// Inverted dropout from a counter: the mask that dropout.cu draws, and its application, which is its own gradient.
//
//   kept[i] = word(i) < threshold,  threshold = round((1 - rate) 2^32)
//   y[i]    = kept[i] ? scale x[i] : 0,  scale = 1 / (1 - rate)
//   word(i) = word i % 4 of Philox4x32-10 with counter (i / 4, layer, step, 0) and the seed as key
//
// The mask is drawn for i in C order; x, kept and y lie in any one order. Source: Salmon et al., Parallel random
// numbers: as easy as 1, 2, 3 (2011); Srivastava et al. (2014).
#ifndef REAL
#include "common.h"
#define REAL float
#include "dropout.c"
#undef REAL
#define REAL double
#include "dropout.c"

enum { BESIDE = 16 };  // rows whose rounds run beside each other, for the compiler to put into vectors

// The mask of rows and columns, of these a multiple of 4, at kept[r * row + c * column] for i = r * columns + c.
void dropout_kept(uint8_t *kept, long rows, long columns, long row, long column, uint32_t layer, uint32_t step,
                  uint64_t seed, uint64_t threshold) {
    for (long c = 0; c < columns; c += 4)
        for (long r = 0; r < rows; r += BESIDE) {
            uint64_t words[4][BESIDE];  // of 32 bits, as their products need them
            for (int k = 0; k < BESIDE; ++k) {
                words[0][k] = (uint32_t)(((r + k) * columns + c) / 4);
                words[1][k] = layer, words[2][k] = step, words[3][k] = 0;
            }
            uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
            for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u)
                NO_UNROLL for (int k = 0; k < BESIDE; ++k) {
                    const uint64_t product0 = words[0][k] * 0xD2511F53u, product1 = words[2][k] * 0xCD9E8D57u;
                    words[0][k] = product1 >> 32 ^ words[1][k] ^ key0;
                    words[1][k] = (uint32_t)product1;
                    words[2][k] = product0 >> 32 ^ words[3][k] ^ key1;
                    words[3][k] = (uint32_t)product0;
                }
            for (int w = 0; w < 4; ++w) {
                uint8_t *const to = kept + r * row + (c + w) * column;
                for (int k = 0; k < BESIDE && r + k < rows; ++k) to[k * row] = words[w][k] < threshold;
            }
        }
}
#else

void NAME(dropout)(const REAL *x, const uint8_t *kept, REAL scale, REAL *y, long count) {
    for (long i = 0; i < count; ++i) y[i] = kept[i] ? scale * x[i] : 0;
}
#endif
