// Simple operations on matrices and vectors.
#include "device.cuh"

// to += from
extern "C" __global__ void add(float *to, const float *from, uint64_t count) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] += from[i];
}
KERNEL(add)

// Adds the rows of `[rows, width]` to `to` in ascending order, a column for each thread.
extern "C" __global__ void add_rows(float *to, const float *from, uint64_t rows, uint64_t width) {
    const uint64_t column = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = to[column];
    for (uint64_t row = 0; row < rows; row++) sum += from[row * width + column];
    to[column] = sum;
}
KERNEL(add_rows)

// Row `ids[i]` of `from` becomes row i of `to`.
extern "C" __global__ void gather_rows(float *to, const float *from, const unsigned *ids,
                                       uint64_t rows, uint64_t width) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < rows * width) to[i] = from[ids[i / width] * width + i % width];
}
KERNEL(gather_rows)

// Adds rows of `from` to the rows `ids` of `to`, a column of a segment for each thread. Segment s
// holds the rows `order[starts[s]]` to `order[starts[s + 1] - 1]`, which are added in this order to
// row `ids[s]`.
extern "C" __global__ void scatter_add_rows(float *to, const float *from, const unsigned *ids,
                                            const unsigned *starts, const unsigned *order,
                                            uint64_t segments, uint64_t width) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= segments * width) return;
    const uint64_t segment = i / width, column = i % width;
    float *element = to + ids[segment] * width + column;
    float sum = *element;
    for (unsigned at = starts[segment]; at < starts[segment + 1]; at++)
        sum += from[order[at] * width + column];
    *element = sum;
}
KERNEL(scatter_add_rows)
