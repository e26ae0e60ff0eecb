// Causal attention within the segments of packed rows, forward and backward, on tensor cores: the
// algorithms of attention.cu with products of bfloat16.
//
// src/device/attention/packed.rs says where values are rounded to bfloat16; all else is in single
// precision.
//
// A block of four warps works on a tile of 64 rows of one head, 16 for each warp. Rows of the other
// side pass through shared memory, N at a time, by asynchronous copies. Products stay in the
// fragments of mma.cuh: lane 4 g + t has rows g and g + 8 of its warp's, and columns 2 t and
// 2 t + 1 of each 8.
#include "attention.cuh"
#include "mma.cuh"

namespace attention_tensor {

using namespace attention;
using half_t = uint16_t; // the bits of bfloat16

constexpr unsigned TILE = ITEM_ROWS;

// Rows of shared memory begin this many elements apart, so that matrices meet no bank twice.
template <unsigned D> constexpr unsigned STRIDE = D + 8;

// Begins to copy COUNT rows of a head from position `first` on; rows from `end` on and columns from
// `head_dim` on become zero.
template <unsigned COUNT, unsigned D>
__device__ __forceinline__ void begin_rows(half_t *to, const half_t *from, unsigned stride,
                                           unsigned head_dim, unsigned first, unsigned end) {
    for (unsigned i = threadIdx.x; i < COUNT * (D / 8); i += THREADS) {
        const unsigned row = i / (D / 8), column = i % (D / 8) * 8;
        const bool inside = first + row < end && column < head_dim;
        const uint64_t at = inside ? uint64_t(first + row) * stride + column : 0;
        tensor::copy_async(to + row * STRIDE<D> + column, from + at, !inside);
    }
}

// products = the warp's 16 rows of `left` times the N rows of `right`.
template <unsigned D, unsigned N>
__device__ __forceinline__ void multiply(const half_t *left, const half_t *right,
                                         float (&products)[N / 8][4]) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    left += (16 * warp + lane % 16) * STRIDE<D> + lane / 16 * 8;
    right += (lane / 16 * 8 + lane % 8) * STRIDE<D> + lane / 8 % 2 * 8;
    for (unsigned n = 0; n < N / 8; n++)
        for (unsigned i = 0; i < 4; i++) products[n][i] = 0.0f;
#pragma unroll
    for (unsigned k = 0; k < D; k += 16) {
        unsigned a[4];
        tensor::load_matrices(a, left + k);
#pragma unroll
        for (unsigned n = 0; n < N / 8; n += 2) {
            unsigned b[4];
            tensor::load_matrices(b, right + 8 * n * STRIDE<D> + k);
            tensor::multiply_add(products[n], a, b[0], b[1]);
            tensor::multiply_add(products[n + 1], a, b[2], b[3]);
        }
    }
}

// sums += the weights, rounded, times N rows.
template <unsigned D, unsigned N>
__device__ __forceinline__ void mix(const float (&weights)[N / 8][4], const half_t *rows,
                                    float (&sums)[D / 8][4]) {
    const unsigned lane = threadIdx.x % 32;
    rows += lane % 16 * STRIDE<D> + lane / 16 * 8;
#pragma unroll
    for (unsigned k = 0; k < N / 8; k += 2) {
        const float *low = weights[k], *high = weights[k + 1];
        const unsigned a[4] = {tensor::packed(low[0], low[1]), tensor::packed(low[2], low[3]),
                               tensor::packed(high[0], high[1]), tensor::packed(high[2], high[3])};
#pragma unroll
        for (unsigned d = 0; d < D / 8; d += 2) {
            unsigned b[4];
            tensor::load_transposed(b, rows + 8 * k * STRIDE<D> + 8 * d);
            tensor::multiply_add(sums[d], a, b[0], b[1]);
            tensor::multiply_add(sums[d + 1], a, b[2], b[3]);
        }
    }
}

// Position of the rows i = 0 and 1 of this thread in a tile from `start` on.
__device__ __forceinline__ unsigned row_of(unsigned start, unsigned i) {
    return start + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * i;
}

// Column i of this thread in group n of 8.
__device__ __forceinline__ unsigned column_of(unsigned n, unsigned i) {
    return 8 * n + threadIdx.x % 4 * 2 + i % 2;
}

// Writes factor * sums to the rows of a tile below `end`.
template <unsigned D>
__device__ __forceinline__ void store_rows(float *to, unsigned stride, unsigned head_dim,
                                           unsigned start, unsigned end,
                                           const float (&sums)[D / 8][4],
                                           const float (&factors)[2]) {
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
        const unsigned row = row_of(start, i);
#pragma unroll
        for (unsigned n = 0; n < D / 8; n++) {
            const unsigned column = column_of(n, 0);
            if (row >= end || column >= head_dim) continue;
            float *at = to + uint64_t(row) * stride + column;
            at[0] = sums[n][2 * i] * factors[i];
            at[1] = sums[n][2 * i + 1] * factors[i];
        }
    }
}

template <unsigned COUNT> __device__ __forceinline__ void clear(float (&sums)[COUNT][4]) {
    for (unsigned n = 0; n < COUNT; n++)
        for (unsigned i = 0; i < 4; i++) sums[n][i] = 0.0f;
}

// The sum and the largest over the four threads of a row, for each of them.
__device__ __forceinline__ float sum_of_row(float own) {
    own += __shfl_xor_sync(~0u, own, 1, 4);
    return own + __shfl_xor_sync(~0u, own, 2, 4);
}

__device__ __forceinline__ float largest_of_row(float own) {
    own = larger(own, __shfl_xor_sync(~0u, own, 1, 4));
    return larger(own, __shfl_xor_sync(~0u, own, 2, 4));
}

// Softmax of two rows of which N scores are known at a time.
template <unsigned D> struct Softmax {
    float largest[2], sums[2]; // `sums` of this thread's keys
    float mixed[D / 8][4];

    __device__ __forceinline__ void start() {
        largest[0] = largest[1] = NO_SCORE;
        sums[0] = sums[1] = 0.0f;
        clear(mixed);
    }

    // Replaces the scores of the keys from `first` on by their weights.
    template <unsigned COUNT>
    __device__ __forceinline__ void add(float (&scores)[COUNT][4], unsigned start, unsigned first,
                                        const Layer<half_t> &layer) {
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            const unsigned query = row_of(start, i);
            float most = largest[i];
#pragma unroll
            for (unsigned n = 0; n < COUNT; n++)
#pragma unroll
                for (unsigned j = 2 * i; j < 2 * i + 2; j++) {
                    scores[n][j] *= layer.scale;
                    if (sees(query, first + column_of(n, j), layer.window))
                        most = larger(most, scores[n][j]);
                }
            most = largest_of_row(most);
            const float kept = exponential(largest[i] - most);
            largest[i] = most;
            sums[i] *= kept;
#pragma unroll
            for (unsigned n = 0; n < COUNT; n++)
#pragma unroll
                for (unsigned j = 2 * i; j < 2 * i + 2; j++) {
                    const bool seen = sees(query, first + column_of(n, j), layer.window);
                    scores[n][j] = seen ? exponential(scores[n][j] - most) : 0.0f;
                    sums[i] += scores[n][j];
                }
#pragma unroll
            for (unsigned n = 0; n < D / 8; n++)
#pragma unroll
                for (unsigned j = 2 * i; j < 2 * i + 2; j++) mixed[n][j] *= kept;
        }
    }
};

// Block (x, y): tile x, query head y. `sums` is `[query_heads, tokens]`: log sum exp of the scores.
template <unsigned D, unsigned N>
__device__ __forceinline__ void forward(const Layer<half_t> &layer, float *out, float *sums) {
    SHARED_MEMORY(half_t, queries);
    half_t *keys = queries + TILE * STRIDE<D>, *values = keys + N * STRIDE<D>;
    const Item item = item_of(layer.items, blockIdx.x, 0, TILE);
    const unsigned head = blockIdx.y, stride = layer.columns(), width = layer.head_dim;
    const half_t *rows = layer.qkv + item.segment * stride;
    const half_t *key_rows = rows + (layer.query_heads + head / layer.group()) * width;
    const half_t *value_rows = key_rows + layer.kv_heads * width;
    const unsigned end = min_of(item.start + TILE, item.length);
    unsigned first = first_key(item.start, layer.window) / N * N;
    begin_rows<TILE, D>(queries, rows + head * width, stride, width, item.start, end);
    begin_rows<N, D>(keys, key_rows, stride, width, first, end);
    tensor::commit_copies();
    Softmax<D> softmax;
    softmax.start();
    for (; first < end; first += N) {
        tensor::wait_for_copies<0>();
        __syncthreads();
        begin_rows<N, D>(values, value_rows, stride, width, first, end);
        tensor::commit_copies();
        float scores[N / 8][4];
        multiply<D, N>(queries, keys, scores);
        softmax.add(scores, item.start, first, layer);
        tensor::wait_for_copies<0>();
        __syncthreads();
        if (first + N < end) {
            begin_rows<N, D>(keys, key_rows, stride, width, first + N, end);
            tensor::commit_copies();
        }
        mix<D, N>(scores, values, softmax.mixed);
    }
    float factors[2];
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
        const float sum = sum_of_row(softmax.sums[i]);
        factors[i] = 1.0f / sum;
        const unsigned position = row_of(item.start, i);
        if (threadIdx.x % 4 == 0 && position < end)
            sums[head * layer.tokens + item.segment + position] =
                softmax.largest[i] + static_cast<float>(log(static_cast<double>(sum)));
    }
    float *to = out + item.segment * layer.outputs() + head * width;
    store_rows<D>(to, layer.outputs(), width, item.start, end, softmax.mixed, factors);
}

// Replaces a score by its weight, and the product of gradient and value by the gradient of the
// scaled score.
__device__ __forceinline__ void weigh(float &score, float &product, float sum, float along,
                                      float scale, bool seen) {
    score = seen ? exponential(fmaf(score, scale, -sum)) : 0.0f;
    product = score * (product - along);
}

// Gradients of the keys and values of a tile. Block (x, y): tile x, key head y; the query heads of
// the group follow one after the other.
template <unsigned D, unsigned N>
__device__ __forceinline__ void backward_keys(const Layer<half_t> &layer,
                                              const Known<half_t> &known, float *dqkv,
                                              unsigned items) {
    SHARED_MEMORY(half_t, keys);
    half_t *values = keys + TILE * STRIDE<D>, *buffers = values + TILE * STRIDE<D>;
    // Early keys have the most queries, and items are sorted for queries.
    const Item item = item_of(layer.items, items - 1 - blockIdx.x, 0, TILE);
    const unsigned stride = layer.columns(), width = layer.head_dim, outputs = layer.outputs();
    const half_t *rows = layer.qkv + item.segment * stride;
    const half_t *grad_rows = known.grad + item.segment * outputs;
    const unsigned key_column = (layer.query_heads + blockIdx.y) * width;
    const unsigned value_column = key_column + layer.kv_heads * width;
    const unsigned end = min_of(item.start + TILE, item.length);
    // Behind the last query that sees a key of the tile.
    const unsigned behind =
        item.length - (end - 1) > layer.window ? end - 1 + layer.window : item.length;
    const unsigned steps = (behind - item.start + N - 1) / N;
    const auto begin = [&](unsigned step) {
        const unsigned column = (blockIdx.y * layer.group() + step / steps) * width;
        const unsigned first = item.start + step % steps * N;
        half_t *queries = buffers + step % 2 * 2 * N * STRIDE<D>, *grads = queries + N * STRIDE<D>;
        begin_rows<N, D>(queries, rows + column, stride, width, first, behind);
        begin_rows<N, D>(grads, grad_rows + column, outputs, width, first, behind);
        tensor::commit_copies();
    };
    begin_rows<TILE, D>(keys, rows + key_column, stride, width, item.start, end);
    begin_rows<TILE, D>(values, rows + value_column, stride, width, item.start, end);
    begin(0);
    float dk[D / 8][4], dv[D / 8][4];
    clear(dk);
    clear(dv);
    for (unsigned step = 0; step < steps * layer.group(); step++) {
        if (step + 1 < steps * layer.group()) {
            begin(step + 1);
            tensor::wait_for_copies<1>();
        } else {
            tensor::wait_for_copies<0>();
        }
        __syncthreads();
        const half_t *queries = buffers + step % 2 * 2 * N * STRIDE<D>;
        const half_t *grads = queries + N * STRIDE<D>;
        const uint64_t head = blockIdx.y * layer.group() + step / steps;
        const uint64_t at = head * layer.tokens + item.segment;
        const unsigned first = item.start + step % steps * N;
        float scores[N / 8][4], products[N / 8][4];
        multiply<D, N>(keys, queries, scores);
        multiply<D, N>(values, grads, products);
        for (unsigned n = 0; n < N / 8; n++)
            for (unsigned j = 0; j < 2; j++) {
                const unsigned query = first + column_of(n, j);
                const bool inside = query < behind;
                const float sum = inside ? known.sums[at + query] : 0.0f;
                const float along = inside ? known.along[at + query] : 0.0f;
                for (unsigned i = 0; i < 2; i++) {
                    const bool seen = inside && sees(query, row_of(item.start, i), layer.window);
                    weigh(scores[n][2 * i + j], products[n][2 * i + j], sum, along, layer.scale,
                          seen);
                }
            }
        mix<D, N>(scores, grads, dv);
        mix<D, N>(products, queries, dk);
        __syncthreads();
    }
    const float ones[2] = {1.0f, 1.0f}, scales[2] = {layer.scale, layer.scale};
    float *to = dqkv + item.segment * stride;
    store_rows<D>(to + key_column, stride, width, item.start, end, dk, scales);
    store_rows<D>(to + value_column, stride, width, item.start, end, dv, ones);
}

// Gradients of the queries of a tile. Block (x, y): tile x, query head y.
template <unsigned D, unsigned N>
__device__ __forceinline__ void backward_queries(const Layer<half_t> &layer,
                                                 const Known<half_t> &known, float *dqkv) {
    SHARED_MEMORY(half_t, queries);
    half_t *grads = queries + TILE * STRIDE<D>, *buffers = grads + TILE * STRIDE<D>;
    const Item item = item_of(layer.items, blockIdx.x, 0, TILE);
    const unsigned head = blockIdx.y, stride = layer.columns(), width = layer.head_dim;
    const half_t *rows = layer.qkv + item.segment * stride;
    const half_t *key_rows = rows + (layer.query_heads + head / layer.group()) * width;
    const half_t *grad_rows = known.grad + item.segment * layer.outputs() + head * width;
    const unsigned end = min_of(item.start + TILE, item.length);
    const unsigned begin_key = first_key(item.start, layer.window) / N * N;
    const auto begin = [&](unsigned first) {
        half_t *keys = buffers + first / N % 2 * 2 * N * STRIDE<D>, *values = keys + N * STRIDE<D>;
        begin_rows<N, D>(keys, key_rows, stride, width, first, end);
        begin_rows<N, D>(values, key_rows + layer.kv_heads * width, stride, width, first, end);
        tensor::commit_copies();
    };
    begin_rows<TILE, D>(queries, rows + head * width, stride, width, item.start, end);
    begin_rows<TILE, D>(grads, grad_rows, layer.outputs(), width, item.start, end);
    begin(begin_key);
    const uint64_t at = head * layer.tokens + item.segment;
    float sums[2], along[2], dq[D / 8][4];
    clear(dq);
    for (unsigned i = 0; i < 2; i++) {
        const unsigned query = row_of(item.start, i);
        sums[i] = query < end ? known.sums[at + query] : 0.0f;
        along[i] = query < end ? known.along[at + query] : 0.0f;
    }
    for (unsigned first = begin_key; first < end; first += N) {
        if (first + N < end) {
            begin(first + N);
            tensor::wait_for_copies<1>();
        } else {
            tensor::wait_for_copies<0>();
        }
        __syncthreads();
        const half_t *keys = buffers + first / N % 2 * 2 * N * STRIDE<D>;
        float scores[N / 8][4], products[N / 8][4];
        multiply<D, N>(queries, keys, scores);
        multiply<D, N>(grads, keys + N * STRIDE<D>, products);
        for (unsigned n = 0; n < N / 8; n++)
            for (unsigned j = 0; j < 4; j++) {
                const unsigned query = row_of(item.start, j / 2);
                const bool seen =
                    query < end && sees(query, first + column_of(n, j), layer.window);
                weigh(scores[n][j], products[n][j], sums[j / 2], along[j / 2], layer.scale, seen);
            }
        mix<D, N>(products, keys, dq);
        __syncthreads();
    }
    const float scales[2] = {layer.scale, layer.scale};
    float *to = dqkv + item.segment * stride + head * width;
    store_rows<D>(to, stride, width, item.start, end, dq, scales);
}

} // namespace attention_tensor

#define TENSOR_KERNELS(D, FORWARD_ROWS, BACKWARD_ROWS)                                             \
    extern "C" __global__ void __launch_bounds__(128) attention_tensor_forward_##D(                \
        const uint16_t *qkv, const unsigned *items, uint64_t tokens, unsigned query_heads,         \
        unsigned kv_heads, unsigned head_dim, unsigned window, float scale, float *out,            \
        float *sums) {                                                                             \
        attention_tensor::forward<D, FORWARD_ROWS>(                                                \
            {qkv, items, tokens, query_heads, kv_heads, head_dim, window, scale}, out, sums);      \
    }                                                                                              \
    KERNEL(attention_tensor_forward_##D)                                                           \
    extern "C" __global__ void __launch_bounds__(128) attention_tensor_backward_keys_##D(          \
        const uint16_t *qkv, const unsigned *items, uint64_t tokens, unsigned query_heads,         \
        unsigned kv_heads, unsigned head_dim, unsigned window, float scale, const uint16_t *grad,  \
        const float *sums, const float *along, float *dqkv, unsigned item_count) {                 \
        attention_tensor::backward_keys<D, BACKWARD_ROWS>(                                         \
            {qkv, items, tokens, query_heads, kv_heads, head_dim, window, scale},                  \
            {grad, sums, along}, dqkv, item_count);                                                \
    }                                                                                              \
    KERNEL(attention_tensor_backward_keys_##D)                                                     \
    extern "C" __global__ void __launch_bounds__(128) attention_tensor_backward_queries_##D(       \
        const uint16_t *qkv, const unsigned *items, uint64_t tokens, unsigned query_heads,         \
        unsigned kv_heads, unsigned head_dim, unsigned window, float scale, const uint16_t *grad,  \
        const float *sums, const float *along, float *dqkv) {                                      \
        attention_tensor::backward_queries<D, BACKWARD_ROWS>(                                      \
            {qkv, items, tokens, query_heads, kv_heads, head_dim, window, scale},                  \
            {grad, sums, along}, dqkv);                                                            \
    }                                                                                              \
    KERNEL(attention_tensor_backward_queries_##D)

// Columns of a head, and rows of the other side forward and backward; src/device/attention has the
// same sizes.
TENSOR_KERNELS(64, 64, 64)
TENSOR_KERNELS(128, 64, 32)
