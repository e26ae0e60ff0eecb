// Simple operations on matrices and vectors.
#include "device.cuh"

// to += from
extern "C" __global__ void add(float *to, const float *from, uint64_t count) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] += from[i];
}
KERNEL(add)

// x *= factor
extern "C" __global__ void scale(float *x, uint64_t count, float factor) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) x[i] *= factor;
}
KERNEL(scale)

// Rounds numbers to bfloat16.
extern "C" __global__ void to_bfloat16(uint16_t *to, const float *from, uint64_t count) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] = bfloat16_bits(from[i]);
}
KERNEL(to_bfloat16)

// Adds `bias`, `[width]`, to each row of `y`; rows are `stride` elements apart.
extern "C" __global__ void add_bias(float *y, const float *bias, uint64_t rows, uint64_t width,
                                    uint64_t stride) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < rows * width) y[i / width * stride + i % width] += bias[i % width];
}
KERNEL(add_bias)

// Sums the columns of a chunk of 64 rows, which are `stride` elements apart, a column for each
// thread: block (x, y) sums columns of chunk y.
extern "C" __global__ void sum_rows(float *sums, const float *from, uint64_t rows, uint64_t width,
                                    uint64_t stride) {
    const uint64_t column = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const uint64_t start = uint64_t(blockIdx.y) * 64, end = min_of(start + 64, rows);
    float sum = 0.0f;
    for (uint64_t row = start; row < end; row++) sum += from[row * stride + column];
    sums[uint64_t(blockIdx.y) * width + column] = sum;
}
KERNEL(sum_rows)

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
// row `ids[s]`. If `set` is not 0, the last of them replaces the row.
extern "C" __global__ void scatter_add_rows(float *to, const float *from, const unsigned *ids,
                                            const unsigned *starts, const unsigned *order,
                                            uint64_t segments, uint64_t width, unsigned set) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= segments * width) return;
    const uint64_t segment = i / width, column = i % width;
    float *element = to + ids[segment] * width + column;
    if (set) {
        *element = from[order[starts[segment + 1] - 1] * width + column];
        return;
    }
    float sum = *element;
    for (unsigned at = starts[segment]; at < starts[segment + 1]; at++)
        sum += from[order[at] * width + column];
    *element = sum;
}
KERNEL(scatter_add_rows)
