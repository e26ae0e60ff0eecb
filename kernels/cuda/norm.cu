// RMSNorm and LayerNorm of groups of columns within rows, forward and backward.
//
// A row of `columns` holds `groups` groups of `width` columns from column `first` on; the other
// columns are copied. Half a warp normalises one group, in the lanes of the host. RMSNorm has no
// bias (a null pointer) and no mean.
#include "device.cuh"

struct Statistics {
    float mean, scale;
};

__device__ __forceinline__ Statistics statistics(const float *x, unsigned width, float eps,
                                                 bool layer, unsigned lane) {
    float mean = 0.0f;
    if (layer) {
        float own = 0.0f;
        for (unsigned i = lane; i < width; i += LANES) own += x[i];
        mean = sum_of_lanes(own) / static_cast<float>(width);
    }
    float own = 0.0f;
    for (unsigned i = lane; i < width; i += LANES) own = fmaf(x[i] - mean, x[i] - mean, own);
    const float variance = sum_of_lanes(own) / static_cast<float>(width);
    return {mean, 1.0f / sqrtf(variance + eps)};
}

// Copies the columns of a row that no group holds.
__device__ __forceinline__ void copy_rest(const float *x, float *y, unsigned columns,
                                          unsigned first, unsigned end, unsigned lane) {
    for (unsigned i = lane; i < first; i += LANES) y[i] = x[i];
    for (unsigned i = end + lane; i < columns; i += LANES) y[i] = x[i];
}

// One group for each half warp of the grid.
extern "C" __global__ void norm_forward(const float *x, float *y, const float *weight,
                                        const float *bias, uint64_t rows, unsigned columns,
                                        unsigned first, unsigned groups, unsigned width,
                                        float eps) {
    const uint64_t item = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
    const unsigned lane = threadIdx.x % LANES;
    if (item >= rows * groups) return;
    const uint64_t row = item / groups * columns;
    const unsigned group = item % groups, start = first + group * width;
    if (group == 0) copy_rest(x + row, y + row, columns, first, first + groups * width, lane);
    const float *in = x + row + start;
    float *out = y + row + start;
    const Statistics s = statistics(in, width, eps, bias != nullptr, lane);
    for (unsigned i = lane; i < width; i += LANES) {
        const float unit = (in[i] - s.mean) * s.scale * weight[i];
        out[i] = bias ? unit + bias[i] : unit;
    }
}
KERNEL(norm_forward)

// Replaces dy by dx in `d`. `stored` is from `norm_statistics`. With u = (x - mean) scale and
// g = dy w: dx = scale (g - u mean(g u) [- mean(g) for LayerNorm]).
extern "C" __global__ void norm_backward(const float *x, float *d, const float *weight,
                                         const float *stored, uint64_t rows, unsigned columns,
                                         unsigned first, unsigned groups, unsigned width,
                                         unsigned layer) {
    const uint64_t item = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
    const unsigned lane = threadIdx.x % LANES;
    if (item >= rows * groups) return;
    const uint64_t at = item / groups * columns + first + item % groups * width;
    const float *in = x + at;
    float *grad = d + at;
    const float mean = stored[2 * item], scale = stored[2 * item + 1];
    float along = 0.0f, total = 0.0f;
    for (unsigned i = lane; i < width; i += LANES) {
        const float weighted = grad[i] * weight[i];
        along = fmaf(weighted, (in[i] - mean) * scale, along);
        if (layer) total += weighted;
    }
    const float n = static_cast<float>(width);
    along = sum_of_lanes(along) / n;
    total = layer ? sum_of_lanes(total) / n : 0.0f;
    for (unsigned i = lane; i < width; i += LANES) {
        const float unit = (in[i] - mean) * scale;
        grad[i] = scale * (grad[i] * weight[i] - unit * along - total);
    }
}
KERNEL(norm_backward)

// Mean and scale of each group, `[rows, groups, 2]`.
extern "C" __global__ void norm_statistics(const float *x, float *stored, uint64_t rows,
                                           unsigned columns, unsigned first, unsigned groups,
                                           unsigned width, float eps, unsigned layer) {
    const uint64_t item = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
    const unsigned lane = threadIdx.x % LANES;
    if (item >= rows * groups) return;
    const float *in = x + item / groups * columns + first + item % groups * width;
    const Statistics s = statistics(in, width, eps, layer, lane);
    if (lane == 0) {
        stored[2 * item] = s.mean;
        stored[2 * item + 1] = s.scale;
    }
}
KERNEL(norm_statistics)

// The parameters' gradients of a chunk of 64 rows, a column for each thread: block (x, y) sums
// columns of chunk y. `db` is null for RMSNorm.
extern "C" __global__ void norm_sums(const float *x, const float *dy, const float *stored,
                                     float *dw, float *db, uint64_t rows, unsigned columns,
                                     unsigned first, unsigned groups, unsigned width) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const uint64_t start = uint64_t(blockIdx.y) * 64, end = min_of(start + 64, rows);
    float weight_sum = 0.0f, bias_sum = 0.0f;
    for (uint64_t item = start * groups; item < end * groups; item++) {
        const uint64_t at = item / groups * columns + first + item % groups * width + column;
        const float unit = (x[at] - stored[2 * item]) * stored[2 * item + 1];
        weight_sum += dy[at] * unit;
        bias_sum += dy[at];
    }
    dw[uint64_t(blockIdx.y) * width + column] = weight_sum;
    if (db) db[uint64_t(blockIdx.y) * width + column] = bias_sum;
}
KERNEL(norm_sums)
