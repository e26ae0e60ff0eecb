// Sums over a row of logits, with the host's bits (`host::row`).
#pragma once
#include "device.cuh"

// Threads of a block.
constexpr unsigned THREADS = 256;
// Logits whose weights are summed in single precision, by half a warp.
constexpr unsigned SUM_BLOCK = 256;

// A row of logits, or those of a kept set.
struct Row {
    const float *logits;
    const unsigned *kept;
    uint64_t count;

    __device__ __forceinline__ float operator[](uint64_t i) const {
        return logits[kept ? kept[i] : i];
    }
};

struct RowStats {
    float max, sum;
};

// Each half warp's sum over the lanes as a balanced tree, in its first lane.
__device__ __forceinline__ float sum_of_tree(float own) {
    const unsigned mask = half_warp();
    for (unsigned half = LANES / 2; half > 0; half /= 2)
        own += __shfl_down_sync(mask, own, half, LANES);
    return own;
}

// Adds `term` of each element: in lanes within a block of 256, then over the blocks in double
// precision, for every thread. `sums` holds a number for each block.
template <class Term>
__device__ __forceinline__ double sum_over(uint64_t count, float *sums, double *total, Term term) {
    const uint64_t blocks = (count + SUM_BLOCK - 1) / SUM_BLOCK;
    for (uint64_t block = threadIdx.x / LANES; block < blocks; block += blockDim.x / LANES) {
        const uint64_t end = min_of((block + 1) * SUM_BLOCK, count);
        float own = 0.0f;
        for (uint64_t i = block * SUM_BLOCK + threadIdx.x % LANES; i < end; i += LANES)
            own = term(own, i);
        own = sum_of_tree(own);
        if (threadIdx.x % LANES == 0) sums[block] = own;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (uint64_t block = 0; block < blocks; block++) sum += sums[block];
        *total = sum;
    }
    __syncthreads();
    const double sum = *total;
    __syncthreads();
    return sum;
}

__device__ __forceinline__ float natural_log(float x) {
    return static_cast<float>(log(static_cast<double>(x)));
}

__device__ __forceinline__ float log_prob_of(float logit, float t, RowStats stats) {
    return fmaf(logit, t, -stats.max) - natural_log(stats.sum);
}

// Entropy in nats, from the sum of the weights and that of weight times distance to the maximum.
__device__ __forceinline__ float entropy_of_sums(double sum, double moment) {
    return static_cast<float>(log(sum) - moment / sum);
}
