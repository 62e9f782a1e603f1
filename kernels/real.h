// What the C sources share that depends on REAL: to be included for each.

// Whether none of `count` numbers is infinite or NaN.
INLINE int NAME(all_finite)(const REAL *numbers, long count) {
    int infinite = 0;
    for (long k = 0; k < count; ++k) infinite |= numbers[k] - numbers[k] != 0;
    return !infinite;
}

// The larger of `best` and `member` k of a window becomes the best, and its number the winner; NaN is larger than any
// number.
INLINE void NAME(take_larger)(const REAL *restrict member, REAL *restrict best, uint8_t *restrict winner, uint8_t k,
                              long count) {
    NO_UNROLL for (long n = 0; n < count; ++n) {
        const int larger = (member[n] > best[n]) | ((member[n] != member[n]) & (best[n] == best[n]));
        best[n] = larger ? member[n] : best[n];
        winner[n] = larger ? k : winner[n];
    }
}
