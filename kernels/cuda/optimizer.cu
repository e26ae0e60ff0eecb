// The global norm of gradients, and AdamW's step, with the host's bits.
#include "device.cuh"

// Gradients whose squares are summed together, in eight lanes of double precision.
constexpr uint64_t NORM_BLOCK = 1 << 14;
constexpr unsigned NORM_LANES = 8;

// The sum of squares of each block of 16,384 gradients, by eight threads. The host adds these sums.
extern "C" __global__ void sums_of_squares(const float *gradients, double *sums, uint64_t count) {
    const uint64_t block = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) / NORM_LANES;
    const uint64_t start = block * NORM_BLOCK, end = min_of(start + NORM_BLOCK, count);
    if (start >= count) return;
    double own = 0.0;
    for (uint64_t i = start + threadIdx.x % NORM_LANES; i < end; i += NORM_LANES) {
        const double gradient = gradients[i];
        own += gradient * gradient;
    }
    const unsigned mask = 0xffu << (threadIdx.x % 32 / NORM_LANES * NORM_LANES);
    double sum = -0.0;
    for (unsigned lane = 0; lane < NORM_LANES; lane++)
        sum += __shfl_sync(mask, own, lane, NORM_LANES);
    if (threadIdx.x % NORM_LANES == 0) sums[block] = sum;
}
KERNEL(sums_of_squares)

// One step of AdamW for one parameter. `copy`, unless null, receives the new values in bfloat16.
extern "C" __global__ void adamw(float *values, const float *gradients, float *first,
                                 float *second, uint16_t *copy, uint64_t count, float clip,
                                 float beta1, float beta2, float rate, float root, float epsilon,
                                 float keep) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float gradient = gradients[i] * clip;
    first[i] = beta1 * first[i] + (1.0f - beta1) * gradient;
    second[i] = beta2 * second[i] + (1.0f - beta2) * gradient * gradient;
    values[i] = values[i] * keep - rate * first[i] / (sqrtf(second[i]) * root + epsilon);
    if (copy) copy[i] = bfloat16_bits(values[i]);
}
KERNEL(adamw)
