// One step of SGD with Nesterov momentum and an L2 penalty, in place, and the step counter that goes with it.
//
//   G = g + 2 l2 w;  v <- momentum v - lr G;  w <- w + momentum v - lr G
//
// w, v, g any one shape; lr (1,) and step (1,) lie on the device, so that a captured step reads the present ones.
// A thread an element. Source: Sutskever et al. (2013) in the form of Lasagne's apply_nesterov_momentum.
#include "common.cuh"

template <typename T>
__global__ void __launch_bounds__(256)
    nesterov_step(T *__restrict__ w, T *__restrict__ velocity, const T *__restrict__ g, const T *__restrict__ lr,
                  long long count, T momentum, T twice_l2) {
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i >= count) return;
    const T change = (g[i] + twice_l2 * w[i]) * *lr;
    const T v = momentum * velocity[i] - change;
    velocity[i] = v;
    w[i] += momentum * v - change;
}

__global__ void advance(unsigned *step) {
    step[0] += 1;
}
