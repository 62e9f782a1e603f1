// Gradient of y = max(x, 0) from its output, `count` numbers of any shape:  gx = 0 where y <= 0, whatever g holds, else
// g: of NaN too, which is not 0 or less.
#ifndef REAL
#include "common.h"
#define REAL float
#include "relu.c"
#undef REAL
#define REAL double
#include "relu.c"
#else

void NAME(relu_grad)(const REAL *g, const REAL *y, REAL *gx, long count) {
    for (long i = 0; i < count; ++i) gx[i] = y[i] <= 0 ? 0 : g[i];
}
#endif
