// One step of SGD with Nesterov momentum as Lasagne writes it, in place on w and velocity, `count` numbers each:
//
//   G = g + l2_gradient w;  v <- momentum v - lr G;  w <- w + momentum v - lr G
#ifndef REAL
#include "common.h"
#define REAL float
#include "nesterov.c"
#undef REAL
#define REAL double
#include "nesterov.c"
#else

void NAME(nesterov)(REAL *w, REAL *velocity, const REAL *g, long count, REAL lr, REAL momentum, REAL l2_gradient) {
    for (long i = 0; i < count; ++i) {
        const REAL change = lr * (g[i] + l2_gradient * w[i]), v = momentum * velocity[i] - change;
        velocity[i] = v;
        w[i] += momentum * v - change;
    }
}
#endif
