// What surrounds the network in a training step: the batch comes from a data set on the device, the losses are summed.
//
//   gather      rows[i] = data[permutation[k batch + i]], k = step mod the number of whole batches
//   accumulate  total += sum_n values[n], in double precision
//
// data (M, row_size) as float, double or int, rows (batch, row_size), permutation (.) int, step (1,); total (1,),
// values (N,). gather: a block a row. accumulate: one block, its threads stride over the values, a tree at the end.
#include "common.cuh"

template <typename T>
__global__ void __launch_bounds__(256)
    gather(const T *__restrict__ data, const int *__restrict__ permutation, const unsigned *__restrict__ step,
           T *__restrict__ rows, long long row_size, unsigned batches) {
    const unsigned batch = gridDim.x, first = *step % batches * batch;
    data += permutation[first + blockIdx.x] * row_size;
    rows += blockIdx.x * row_size;
    for (long long i = threadIdx.x; i < row_size; i += blockDim.x) rows[i] = data[i];
}

template <typename T>
__global__ void __launch_bounds__(256)
    accumulate(double *__restrict__ total, const T *__restrict__ values, long long N) {
    __shared__ double scratch[256];
    double sum = 0;
    for (long long n = threadIdx.x; n < N; n += 256) sum += values[n];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) total[0] += sum;
}
