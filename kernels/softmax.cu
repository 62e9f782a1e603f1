// Softmax with temperature T, the cross-entropy after it, and the cotangent with which a saliency map begins.
//
//   u_k = (z_k - max_j z_j) / T, also where the difference of two finite logits is no finite number
//   softmax        p_k = exp(u_k) / sum_j exp(u_j)                        gradient  (g_k - sum_j g_j p_j) p_k / T
//   log-softmax    l_k = u_k - log sum_j exp(u_j)                         gradient  (g_k - exp(l_k) sum_j g_j) / T
//   cross-entropy  L = - sum_k t_k l_k, a term 0 where t_k is             gradient  g (exp(l_k) sum_j t_j - t_k) / T
//   saliency cotangent, the gradient of L for a class label
//                  plain:  (p_k - [k = label]) / T, log10 scale 0
//                  scaled: -1 at the label, exp(l_k - R) elsewhere, R = log sum_{j != label} exp(l_j)
//                          = log(1 - p_label): the plain one divided by exp(R) / T, so log10 scale (R - ln T) / ln 10
//
// z, p, l, g (N,K); L and its g (N,); targets t: class labels (N,) as int or long long, or soft labels (N,K); a class
// label outside 0..K-1 gives NaN. A thread a row; sums run over the K classes in order, but for the plain cotangent's,
// which is a tree: the author's gradient and his loss add in these two orders, and they fix the last bits.
// Source: equations (2), (3) of the paper, corrected; the scaled cotangent is this project's.
#include "common.cuh"

template <typename T>
__device__ T largest_of(const T *row, int K) {
    T largest = row[0];
    for (int k = 1; k < K; ++k) largest = row[k] > largest ? row[k] : largest;
    return largest;
}

template <typename T>
__device__ __forceinline__ bool is_finite(T x) {
    return x - x == 0;
}

template <typename T>
__device__ __forceinline__ T exponent(T z, T largest, T temperature) {
    const T difference = z - largest;
    return is_finite(z) && !is_finite(difference) ? z / temperature - largest / temperature : difference / temperature;
}

template <typename T>
__device__ T sum_of_exponentials(const T *z, int K, T largest, T temperature) {
    T sum = 0;
    for (int k = 0; k < K; ++k) sum += exponential(exponent(z[k], largest, temperature));
    return sum;
}

// Slot t of 16 takes the classes t, t + 16, t + 32, ... in order; then the upper half of the slots is added to the lower
// half until one is left.
template <typename T>
__device__ T tree_of_exponentials(const T *z, int K, T largest, T temperature) {
    T slots[16] = {};
    for (int first = 0; first < K; first += 16) {
#pragma unroll
        for (int t = 0; t < 16; ++t)
            if (first + t < K) slots[t] += exponential(exponent(z[first + t], largest, temperature));
    }
#pragma unroll
    for (int half = 8; half; half /= 2) {
#pragma unroll
        for (int t = 0; t < half; ++t) slots[t] += slots[t + half];
    }
    return slots[0];
}

// t_k of a sample: from soft labels, or from a class label.
template <typename T>
__device__ T target_of(const T *soft, int sample, int k, int K) {
    return soft[(long long)sample * K + k];
}
template <typename T>
__device__ T target_of(const long long *labels, int sample, int k, int K) {
    return labels[sample] < 0 || labels[sample] >= K ? T(nan("")) : T(labels[sample] == k);
}
template <typename T>
__device__ T target_of(const int *labels, int sample, int k, int K) {
    return labels[sample] < 0 || labels[sample] >= K ? T(nan("")) : T(labels[sample] == k);
}

template <typename T>
__global__ void __launch_bounds__(128)
    softmax(const T *__restrict__ z, T *__restrict__ p, int N, int K, T temperature) {
    const int n = blockIdx.x * 128 + threadIdx.x;
    if (n >= N) return;
    z += (long long)n * K;
    p += (long long)n * K;
    const T largest = largest_of(z, K), sum = sum_of_exponentials(z, K, largest, temperature);
    for (int k = 0; k < K; ++k) p[k] = exponential(exponent(z[k], largest, temperature)) / sum;
}

template <typename T>
__global__ void __launch_bounds__(128)
    softmax_grad(const T *__restrict__ g, const T *__restrict__ p, T *__restrict__ gz, int N, int K, T temperature) {
    const int n = blockIdx.x * 128 + threadIdx.x;
    if (n >= N) return;
    g += (long long)n * K;
    p += (long long)n * K;
    gz += (long long)n * K;
    T sum = 0;
    for (int k = 0; k < K; ++k) sum += g[k] * p[k];
    for (int k = 0; k < K; ++k) gz[k] = (g[k] - sum) * p[k] / temperature;
}

template <typename T>
__global__ void __launch_bounds__(128)
    log_softmax(const T *__restrict__ z, T *__restrict__ l, int N, int K, T temperature) {
    const int n = blockIdx.x * 128 + threadIdx.x;
    if (n >= N) return;
    z += (long long)n * K;
    l += (long long)n * K;
    const T largest = largest_of(z, K), log_sum = logarithm(sum_of_exponentials(z, K, largest, temperature));
    for (int k = 0; k < K; ++k) l[k] = exponent(z[k], largest, temperature) - log_sum;
}

template <typename T>
__global__ void __launch_bounds__(128)
    log_softmax_grad(const T *__restrict__ g, const T *__restrict__ l, T *__restrict__ gz, int N, int K,
                     T temperature) {
    const int n = blockIdx.x * 128 + threadIdx.x;
    if (n >= N) return;
    g += (long long)n * K;
    l += (long long)n * K;
    gz += (long long)n * K;
    T sum = 0;
    for (int k = 0; k < K; ++k) sum += g[k];
    for (int k = 0; k < K; ++k) gz[k] = (g[k] - exponential(l[k]) * sum) / temperature;
}

template <typename T, typename Target>
__global__ void __launch_bounds__(128)
    cross_entropy(const T *__restrict__ z, const Target *__restrict__ target, T *__restrict__ losses, int N, int K,
                  T temperature) {
    const int n = blockIdx.x * 128 + threadIdx.x;
    if (n >= N) return;
    z += (long long)n * K;
    const T largest = largest_of(z, K), log_sum = logarithm(sum_of_exponentials(z, K, largest, temperature));
    T sum = 0;
    for (int k = 0; k < K; ++k) {
        const T t = target_of<T>(target, n, k, K);
        if (t != 0) sum += (exponent(z[k], largest, temperature) - log_sum) * t;
    }
    losses[n] = -sum;
}

template <typename T, typename Target>
__global__ void __launch_bounds__(128)
    cross_entropy_grad(const T *__restrict__ g, const T *__restrict__ z, const Target *__restrict__ target,
                       T *__restrict__ gz, int N, int K, T temperature) {
    const int n = blockIdx.x * 128 + threadIdx.x;
    if (n >= N) return;
    z += (long long)n * K;
    gz += (long long)n * K;
    const T largest = largest_of(z, K), log_sum = logarithm(sum_of_exponentials(z, K, largest, temperature));
    T total = 0;
    for (int k = 0; k < K; ++k) total += target_of<T>(target, n, k, K);
    for (int k = 0; k < K; ++k) {
        const T p = exponential(exponent(z[k], largest, temperature) - log_sum);
        gz[k] = g[n] * (p * total - target_of<T>(target, n, k, K)) / temperature;
    }
}

template <typename T, typename Label>
__global__ void __launch_bounds__(128)
    saliency_cotangent(const T *__restrict__ z, const Label *__restrict__ labels, T *__restrict__ g,
                       T *__restrict__ log10_scale, int N, int K, T temperature, int scaled, T ln_temperature,
                       T ln_10) {
    const int n = blockIdx.x * 128 + threadIdx.x;
    if (n >= N) return;
    z += (long long)n * K;
    g += (long long)n * K;
    const T largest = largest_of(z, K);
    if (!scaled) {
        const T sum = tree_of_exponentials(z, K, largest, temperature);
        for (int k = 0; k < K; ++k)
            g[k] = (exponential(exponent(z[k], largest, temperature)) / sum - target_of<T>(labels, n, k, K)) /
                   temperature;
        log10_scale[n] = 0;
        return;
    }
    const T log_sum = logarithm(sum_of_exponentials(z, K, largest, temperature));
    T largest_other = logarithm(T(0));
    for (int k = 0; k < K; ++k) {
        g[k] = exponent(z[k], largest, temperature) - log_sum;
        if (k != labels[n] && g[k] > largest_other) largest_other = g[k];
    }
    T others = 0;
    for (int k = 0; k < K; ++k)
        if (k != labels[n] && g[k] != logarithm(T(0))) others += exponential(g[k] - largest_other);
    const T log_rest = largest_other + logarithm(others);
    for (int k = 0; k < K; ++k) {
        const T y = target_of<T>(labels, n, k, K);
        g[k] = y == 0 ? exponential(g[k] - log_rest) : -y;
    }
    log10_scale[n] = (log_rest - ln_temperature) / ln_10;
}
