// Log-probability and entropy of a token in a row of logits, and their gradients: a block of 256
// threads for each target, with the host's bits (`host::row`).
//
// A target's distribution is the whole row, or the set of token ids kept by a cut: `kept` from
// `offsets[target]` to `offsets[target + 1]`, ascending; no ids mean the whole row.
#include "distribution.cuh"

// The largest element, for every thread. `sums` holds a number for each thread.
__device__ __forceinline__ float largest(const Row &row, float *sums) {
    float most = -__uint_as_float(0x7f800000u);
    for (uint64_t i = threadIdx.x; i < row.count; i += THREADS)
        if (row[i] > most) most = row[i];
    sums[threadIdx.x] = most;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && sums[threadIdx.x + half] > sums[threadIdx.x])
            sums[threadIdx.x] = sums[threadIdx.x + half];
        __syncthreads();
    }
    most = sums[0];
    __syncthreads();
    return most;
}

__device__ __forceinline__ RowStats statistics_of(const Row &row, float t, float *sums,
                                                  double *total) {
    const float max = largest(row, sums) * t;
    const double sum = sum_over(row.count, sums, total, [&](float own, uint64_t i) {
        return own + exponential(fmaf(row[i], t, -max));
    });
    return {max, static_cast<float>(sum)};
}

__device__ __forceinline__ float entropy_of(const Row &row, float t, RowStats stats, float *sums,
                                            double *total) {
    const double moment = sum_over(row.count, sums, total, [&](float own, uint64_t i) {
        float distance = fmaf(row[i], t, -stats.max);
        distance = distance < -88.0f ? -88.0f : distance;
        return fmaf(exponential(distance), distance, own);
    });
    return entropy_of_sums(stats.sum, moment);
}

__device__ __forceinline__ Row row_of(const float *logits, uint64_t vocabulary,
                                      const unsigned *kept, const uint64_t *offsets) {
    const uint64_t start = offsets[blockIdx.x], count = offsets[blockIdx.x + 1] - start;
    if (count == 0) return {logits, nullptr, vocabulary};
    return {logits, kept + start, count};
}

// `[targets, vocabulary]` -> `[targets, columns]`: log-probability and entropy within the target's
// distribution, and where there are three columns the log-probability in the whole row.
extern "C" __global__ void __launch_bounds__(THREADS)
    logits_forward(const float *logits, const unsigned *tokens, const unsigned *kept,
                   const uint64_t *offsets, float *out, uint64_t vocabulary, unsigned columns,
                   float t) {
    SHARED_MEMORY(double, total);
    float *sums = reinterpret_cast<float *>(total + 1);
    const float *row = logits + uint64_t(blockIdx.x) * vocabulary;
    const float logit = row[tokens[blockIdx.x]];
    const Row own = row_of(row, vocabulary, kept, offsets);
    const RowStats stats = statistics_of(own, t, sums, total);
    const float entropy = entropy_of(own, t, stats, sums, total);
    float *results = out + uint64_t(blockIdx.x) * columns;
    RowStats whole = stats;
    if (columns == 3 && own.kept)
        whole = statistics_of({row, nullptr, vocabulary}, t, sums, total);
    if (threadIdx.x != 0) return;
    results[0] = log_prob_of(logit, t, stats);
    results[1] = entropy;
    if (columns == 3) results[2] = log_prob_of(logit, t, whole);
}
KERNEL(logits_forward)

// Writes the gradient of a distribution's logits without the token's one-hot part to `out`, which
// is `[row.count]` and may be the row itself: with z = t x,
// t p (-log_prob - entropy (log p + H)).
__device__ __forceinline__ void differentiate(const Row &row, float *out, float t, float log_prob,
                                              float entropy, float *sums, double *total) {
    const RowStats stats = statistics_of(row, t, sums, total);
    if (entropy == 0.0f) {
        const float factor = -t * log_prob / stats.sum;
        for (uint64_t i = threadIdx.x; i < row.count; i += THREADS)
            out[i] = exponential(fmaf(row[i], t, -stats.max)) * factor;
    } else {
        const float h = entropy_of(row, t, stats, sums, total);
        const float log_sum_exp = stats.max + natural_log(stats.sum), scale = 1.0f / stats.sum;
        for (uint64_t i = threadIdx.x; i < row.count; i += THREADS) {
            const float x = row[i], p = exponential(fmaf(x, t, -stats.max)) * scale;
            float log_p = fmaf(x, t, -log_sum_exp);
            log_p = log_p > -1e4f ? log_p : -1e4f;
            out[i] = t * p * (-log_prob - entropy * (log_p + h));
        }
    }
    __syncthreads();
}

// Replaces the logits by their gradient, given those of the results, `[targets, columns]`.
// `scratch` has a number for each kept id.
extern "C" __global__ void __launch_bounds__(THREADS)
    logits_backward(float *logits, const unsigned *tokens, const unsigned *kept,
                    const uint64_t *offsets, const float *gradients, float *scratch,
                    uint64_t vocabulary, unsigned columns, float t) {
    SHARED_MEMORY(double, total);
    float *sums = reinterpret_cast<float *>(total + 1);
    float *row = logits + uint64_t(blockIdx.x) * vocabulary;
    const float *given = gradients + uint64_t(blockIdx.x) * columns;
    const float own = given[0], entropy = given[1], whole = columns == 3 ? given[2] : 0.0f;
    const unsigned token = tokens[blockIdx.x];
    const Row distribution = row_of(row, vocabulary, kept, offsets);
    const Row all = {row, nullptr, vocabulary};
    if (!distribution.kept) {
        const float both = own + whole;
        differentiate(all, row, t, both, entropy, sums, total);
        if (threadIdx.x == 0) row[token] += t * both;
        return;
    }
    float *of_kept = scratch + offsets[blockIdx.x];
    differentiate(distribution, of_kept, t, own, entropy, sums, total);
    if (whole != 0.0f) {
        differentiate(all, row, t, whole, 0.0f, sums, total);
        if (threadIdx.x == 0) row[token] += t * whole;
        __syncthreads();
        for (uint64_t i = threadIdx.x; i < distribution.count; i += THREADS)
            row[distribution.kept[i]] += of_kept[i];
    } else {
        for (uint64_t i = threadIdx.x; i < vocabulary; i += THREADS) row[i] = 0.0f;
        __syncthreads();
        for (uint64_t i = threadIdx.x; i < distribution.count; i += THREADS)
            row[distribution.kept[i]] = of_kept[i];
    }
    __syncthreads();
    if (threadIdx.x == 0) row[token] += t * own;
}
KERNEL(logits_backward)
