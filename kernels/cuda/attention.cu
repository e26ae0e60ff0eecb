// Causal attention within the segments of packed rows, forward and backward, in single precision,
// after FlashAttention-2 (Dao 2023, algorithms 1 and 2).
//
// Rows are `q | k | v`, `columns` = (query_heads + 2 kv_heads) head_dim. An item is a tile of 64
// rows of a segment: the segment's first row, its length, and the first position of the tile. A
// block of 16 x 8 threads works on a tile of 16 ROWS rows of one head; the rows of the other side
// pass through shared memory, 8 COLS at a time. Thread (row, lane) holds the products of the rows
// row + 16 i with the rows lane + 8 j. Heads are padded with zeros to D columns.
#include "attention.cuh"

namespace attention {

// Rows of shared memory begin this many elements apart, so that reads meet no bank twice.
template <unsigned D> constexpr unsigned STRIDE = D + 4;

// Copies COUNT rows of a head from position `first` on; rows from `end` on and columns from
// `head_dim` on are zero.
template <unsigned COUNT, unsigned D>
__device__ __forceinline__ void load_rows(float *to, const float *from, unsigned stride,
                                          unsigned head_dim, unsigned first, unsigned end) {
    for (unsigned i = threadIdx.x; i < COUNT * (D / 4); i += THREADS) {
        const unsigned row = i / (D / 4), column = i % (D / 4) * 4;
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + row < end && column < head_dim)
            value = load_four(from + uint64_t(first + row) * stride + column);
        store_four(to + row * STRIDE<D> + column, value);
    }
}

// products[i][j] = the product of row i of `left` with row j of `right`.
template <unsigned D, unsigned ROWS, unsigned COLS>
__device__ __forceinline__ void multiply(const float *left, const float *right, unsigned head_dim,
                                         float (&products)[ROWS][COLS]) {
    left += threadIdx.x / 8 * STRIDE<D>;
    right += threadIdx.x % 8 * STRIDE<D>;
    for (unsigned i = 0; i < ROWS; i++)
        for (unsigned j = 0; j < COLS; j++) products[i][j] = 0.0f;
#pragma unroll 4
    for (unsigned d = 0; d < head_dim; d += 4) {
        float4 a[ROWS], b[COLS];
        for (unsigned i = 0; i < ROWS; i++) a[i] = load_four(left + 16 * i * STRIDE<D> + d);
        for (unsigned j = 0; j < COLS; j++) b[j] = load_four(right + 8 * j * STRIDE<D> + d);
        for (unsigned i = 0; i < ROWS; i++)
            for (unsigned j = 0; j < COLS; j++)
                products[i][j] = dot_four(a[i], b[j], products[i][j]);
    }
}

// Stores the thread's weights of its rows, for the threads of the same rows, which are in its warp.
template <unsigned ROWS, unsigned COLS>
__device__ __forceinline__ void store_weights(float *weights, const float (&own)[ROWS][COLS]) {
    for (unsigned i = 0; i < ROWS; i++)
        for (unsigned j = 0; j < COLS; j++)
            weights[(threadIdx.x / 8 + 16 * i) * STRIDE<8 * COLS> + threadIdx.x % 8 + 8 * j] =
                own[i][j];
}

// sums[i][j] += the weighted rows, of which the thread has the columns 32 j + 4 lane on.
template <unsigned D, unsigned ROWS, unsigned COLS>
__device__ __forceinline__ void mix(const float *weights, const float *rows,
                                    float4 (&sums)[ROWS][D / 32]) {
    weights += threadIdx.x / 8 * STRIDE<8 * COLS>;
    rows += threadIdx.x % 8 * 4;
#pragma unroll 2
    for (unsigned c = 0; c < 8 * COLS; c++) {
        float w[ROWS];
        for (unsigned i = 0; i < ROWS; i++) w[i] = weights[16 * i * STRIDE<8 * COLS> + c];
        for (unsigned j = 0; j < D / 32; j++) {
            const float4 row = load_four(rows + c * STRIDE<D> + 32 * j);
            for (unsigned i = 0; i < ROWS; i++) add_product(sums[i][j], w[i], row);
        }
    }
}

// Writes factor * sums to the rows `first + row` below `end` of a head.
template <unsigned D, unsigned ROWS>
__device__ __forceinline__ void store_rows(float *to, unsigned stride, unsigned head_dim,
                                           unsigned first, unsigned end,
                                           const float4 (&sums)[ROWS][D / 32],
                                           const float (&factors)[ROWS]) {
    for (unsigned i = 0; i < ROWS; i++) {
        const unsigned position = first + threadIdx.x / 8 + 16 * i;
        for (unsigned j = 0; j < D / 32; j++) {
            const unsigned column = 32 * j + threadIdx.x % 8 * 4;
            if (position >= end || column >= head_dim) continue;
            const float4 sum = sums[i][j];
            const float f = factors[i];
            store_four(to + uint64_t(position) * stride + column,
                       make_float4(sum.x * f, sum.y * f, sum.z * f, sum.w * f));
        }
    }
}

// The sum or the largest over the 8 threads of a row, for each of them.
__device__ __forceinline__ float sum_of_row(float own) {
    for (unsigned distance = 4; distance > 0; distance /= 2)
        own += __shfl_xor_sync(~0u, own, distance, 8);
    return own;
}

__device__ __forceinline__ float largest_of_row(float own) {
    for (unsigned distance = 4; distance > 0; distance /= 2)
        own = larger(own, __shfl_xor_sync(~0u, own, distance, 8));
    return own;
}

// Softmax of rows of which a part of the scores is known at a time.
template <unsigned D, unsigned ROWS> struct Softmax {
    float largest[ROWS], sums[ROWS]; // `sums` of this thread's keys
    float4 mixed[ROWS][D / 32];

    __device__ __forceinline__ void start() {
        for (unsigned i = 0; i < ROWS; i++) {
            largest[i] = NO_SCORE;
            sums[i] = 0.0f;
            for (unsigned j = 0; j < D / 32; j++) mixed[i][j] = make_float4(0, 0, 0, 0);
        }
    }

    // Replaces the scores of the keys first + lane + 8 j by their weights.
    template <unsigned COLS>
    __device__ __forceinline__ void add(float (&scores)[ROWS][COLS], unsigned row, unsigned first,
                                        const Layer<float> &layer) {
        for (unsigned i = 0; i < ROWS; i++) {
            const unsigned query = row + 16 * i;
            float most = largest[i];
            for (unsigned j = 0; j < COLS; j++) {
                scores[i][j] *= layer.scale;
                if (sees(query, first + 8 * j, layer.window)) most = larger(most, scores[i][j]);
            }
            most = largest_of_row(most);
            const float kept = exponential(largest[i] - most);
            largest[i] = most;
            sums[i] *= kept;
            for (unsigned j = 0; j < COLS; j++) {
                const bool seen = sees(query, first + 8 * j, layer.window);
                scores[i][j] = seen ? exponential(scores[i][j] - most) : 0.0f;
                sums[i] += scores[i][j];
            }
            for (unsigned j = 0; j < D / 32; j++) {
                float4 &sum = mixed[i][j];
                sum = make_float4(sum.x * kept, sum.y * kept, sum.z * kept, sum.w * kept);
            }
        }
    }
};

// Block (x, y): tile x, query head y. `sums` is `[query_heads, tokens]`: log sum exp of the scores.
template <unsigned D, unsigned ROWS, unsigned COLS>
__device__ __forceinline__ void forward(const Layer<float> &layer, float *out, float *sums) {
    constexpr unsigned TILE = 16 * ROWS, KEYS = 8 * COLS, PARTS = ITEM_ROWS / TILE;
    SHARED_MEMORY(float, queries);
    float *keys = queries + TILE * STRIDE<D>, *values = keys + KEYS * STRIDE<D>;
    float *weights = values + KEYS * STRIDE<D>;
    const Item item = item_of(layer.items, blockIdx.x / PARTS, blockIdx.x % PARTS, TILE);
    if (item.start >= item.length) return;
    const unsigned head = blockIdx.y, stride = layer.columns(), width = layer.head_dim;
    const float *rows = layer.qkv + item.segment * stride;
    const float *key_rows = rows + (layer.query_heads + head / layer.group()) * width;
    const unsigned end = min_of(item.start + TILE, item.length);
    load_rows<TILE, D>(queries, rows + head * width, stride, width, item.start, end);
    const unsigned row = item.start + threadIdx.x / 8, lane = threadIdx.x % 8;
    Softmax<D, ROWS> softmax;
    softmax.start();
    for (unsigned first = first_key(item.start, layer.window) / KEYS * KEYS; first < end;
         first += KEYS) {
        __syncthreads();
        load_rows<KEYS, D>(keys, key_rows, stride, width, first, end);
        load_rows<KEYS, D>(values, key_rows + layer.kv_heads * width, stride, width, first, end);
        __syncthreads();
        float scores[ROWS][COLS];
        multiply<D>(queries, keys, width, scores);
        softmax.add(scores, row, first + lane, layer);
        store_weights(weights, scores);
        __syncwarp(~0u);
        mix<D, ROWS, COLS>(weights, values, softmax.mixed);
    }
    float factors[ROWS];
    for (unsigned i = 0; i < ROWS; i++) {
        const float sum = sum_of_row(softmax.sums[i]);
        factors[i] = 1.0f / sum;
        const unsigned position = row + 16 * i;
        if (lane == 0 && position < end)
            sums[head * layer.tokens + item.segment + position] =
                softmax.largest[i] + static_cast<float>(log(static_cast<double>(sum)));
    }
    float *to = out + item.segment * layer.outputs() + head * width;
    store_rows<D>(to, layer.outputs(), width, item.start, end, softmax.mixed, factors);
}

// The weight of a score, and the gradient of the score before it is scaled.
struct Weight {
    float weight, gradient;
};

__device__ __forceinline__ Weight weight_of(float score, float product, float sum, float along,
                                            float scale, bool seen) {
    const float weight = seen ? exponential(fmaf(score, scale, -sum)) : 0.0f;
    return {weight, weight * (product - along) * scale};
}

// Gradients of the keys and values of a tile. Block (x, y): tile x, key head y; the query heads of
// the group follow one after the other.
template <unsigned D, unsigned ROWS, unsigned COLS>
__device__ __forceinline__ void backward_keys(const Layer<float> &layer, const Known<float> &known, float *dqkv,
                                              unsigned items) {
    constexpr unsigned TILE = 16 * ROWS, QUERIES = 8 * COLS, PARTS = ITEM_ROWS / TILE;
    SHARED_MEMORY(float, keys);
    float *values = keys + TILE * STRIDE<D>, *queries = values + TILE * STRIDE<D>;
    float *grads = queries + QUERIES * STRIDE<D>, *weights = grads + QUERIES * STRIDE<D>;
    // Early keys have the most queries, and items are sorted for queries.
    const Item item =
        item_of(layer.items, items - 1 - blockIdx.x / PARTS, blockIdx.x % PARTS, TILE);
    if (item.start >= item.length) return;
    const unsigned stride = layer.columns(), width = layer.head_dim;
    const float *rows = layer.qkv + item.segment * stride;
    const unsigned key_column = (layer.query_heads + blockIdx.y) * width;
    const unsigned value_column = key_column + layer.kv_heads * width;
    const unsigned end = min_of(item.start + TILE, item.length);
    load_rows<TILE, D>(keys, rows + key_column, stride, width, item.start, end);
    load_rows<TILE, D>(values, rows + value_column, stride, width, item.start, end);
    float4 dk[ROWS][D / 32], dv[ROWS][D / 32];
    for (unsigned i = 0; i < ROWS; i++)
        for (unsigned j = 0; j < D / 32; j++) dk[i][j] = dv[i][j] = make_float4(0, 0, 0, 0);
    const unsigned row = item.start + threadIdx.x / 8, lane = threadIdx.x % 8;
    // Behind the last query that sees a key of the tile.
    const unsigned behind =
        item.length - (end - 1) > layer.window ? end - 1 + layer.window : item.length;
    for (unsigned member = 0; member < layer.group(); member++) {
        const unsigned head = blockIdx.y * layer.group() + member;
        const float *grad_rows = known.grad + item.segment * layer.outputs() + head * width;
        const uint64_t at = head * layer.tokens + item.segment;
        for (unsigned first = item.start; first < behind; first += QUERIES) {
            __syncthreads();
            load_rows<QUERIES, D>(queries, rows + head * width, stride, width, first, behind);
            load_rows<QUERIES, D>(grads, grad_rows, layer.outputs(), width, first, behind);
            __syncthreads();
            float scores[ROWS][COLS], products[ROWS][COLS];
            multiply<D>(keys, queries, width, scores);
            multiply<D>(values, grads, width, products);
            for (unsigned j = 0; j < COLS; j++) {
                const unsigned query = first + lane + 8 * j;
                const bool inside = query < behind;
                const float sum = inside ? known.sums[at + query] : 0.0f;
                const float along = inside ? known.along[at + query] : 0.0f;
                for (unsigned i = 0; i < ROWS; i++) {
                    const bool seen = inside && sees(query, row + 16 * i, layer.window);
                    const Weight w = weight_of(scores[i][j], products[i][j], sum, along,
                                               layer.scale, seen);
                    scores[i][j] = w.weight;
                    products[i][j] = w.gradient;
                }
            }
            store_weights(weights, scores);
            __syncwarp(~0u);
            mix<D, ROWS, COLS>(weights, grads, dv);
            __syncwarp(~0u);
            store_weights(weights, products);
            __syncwarp(~0u);
            mix<D, ROWS, COLS>(weights, queries, dk);
        }
    }
    float ones[ROWS];
    for (unsigned i = 0; i < ROWS; i++) ones[i] = 1.0f;
    float *to = dqkv + item.segment * stride;
    store_rows<D>(to + key_column, stride, width, item.start, end, dk, ones);
    store_rows<D>(to + value_column, stride, width, item.start, end, dv, ones);
}

// Gradients of the queries of a tile. Block (x, y): tile x, query head y.
template <unsigned D, unsigned ROWS, unsigned COLS>
__device__ __forceinline__ void backward_queries(const Layer<float> &layer, const Known<float> &known,
                                                 float *dqkv) {
    constexpr unsigned TILE = 16 * ROWS, KEYS = 8 * COLS, PARTS = ITEM_ROWS / TILE;
    SHARED_MEMORY(float, queries);
    float *grads = queries + TILE * STRIDE<D>, *keys = grads + TILE * STRIDE<D>;
    float *values = keys + KEYS * STRIDE<D>, *weights = values + KEYS * STRIDE<D>;
    const Item item = item_of(layer.items, blockIdx.x / PARTS, blockIdx.x % PARTS, TILE);
    if (item.start >= item.length) return;
    const unsigned head = blockIdx.y, stride = layer.columns(), width = layer.head_dim;
    const float *rows = layer.qkv + item.segment * stride;
    const float *key_rows = rows + (layer.query_heads + head / layer.group()) * width;
    const float *grad_rows = known.grad + item.segment * layer.outputs() + head * width;
    const unsigned end = min_of(item.start + TILE, item.length);
    load_rows<TILE, D>(queries, rows + head * width, stride, width, item.start, end);
    load_rows<TILE, D>(grads, grad_rows, layer.outputs(), width, item.start, end);
    const unsigned row = item.start + threadIdx.x / 8, lane = threadIdx.x % 8;
    const uint64_t at = head * layer.tokens + item.segment;
    float sums[ROWS], along[ROWS], ones[ROWS];
    float4 dq[ROWS][D / 32];
    for (unsigned i = 0; i < ROWS; i++) {
        const bool inside = row + 16 * i < end;
        sums[i] = inside ? known.sums[at + row + 16 * i] : 0.0f;
        along[i] = inside ? known.along[at + row + 16 * i] : 0.0f;
        ones[i] = 1.0f;
        for (unsigned j = 0; j < D / 32; j++) dq[i][j] = make_float4(0, 0, 0, 0);
    }
    for (unsigned first = first_key(item.start, layer.window) / KEYS * KEYS; first < end;
         first += KEYS) {
        __syncthreads();
        load_rows<KEYS, D>(keys, key_rows, stride, width, first, end);
        load_rows<KEYS, D>(values, key_rows + layer.kv_heads * width, stride, width, first, end);
        __syncthreads();
        float scores[ROWS][COLS], products[ROWS][COLS];
        multiply<D>(queries, keys, width, scores);
        multiply<D>(grads, values, width, products);
        for (unsigned i = 0; i < ROWS; i++)
            for (unsigned j = 0; j < COLS; j++) {
                const unsigned query = row + 16 * i;
                const bool seen = query < end && sees(query, first + lane + 8 * j, layer.window);
                products[i][j] = weight_of(scores[i][j], products[i][j], sums[i], along[i],
                                           layer.scale, seen)
                                     .gradient;
            }
        store_weights(weights, products);
        __syncwarp(~0u);
        mix<D, ROWS, COLS>(weights, keys, dq);
    }
    float *to = dqkv + item.segment * stride + head * width;
    store_rows<D>(to, stride, width, item.start, end, dq, ones);
}

} // namespace attention

namespace attention {

__device__ __forceinline__ float single(float value) {
    return value;
}

__device__ __forceinline__ float single(uint16_t bfloat16) {
    return __uint_as_float(unsigned(bfloat16) << 16);
}

// along = rowsum(grad * out) for each token and query head, `[query_heads, tokens]`; half a warp
// for each sum.
template <class T>
__device__ __forceinline__ void sum_along(const T *grad, const float *out, float *along,
                                          uint64_t tokens, unsigned heads, unsigned head_dim) {
    const uint64_t item = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
    const unsigned lane = threadIdx.x % LANES;
    if (item >= tokens * heads) return;
    float own = 0.0f;
    for (unsigned i = lane; i < head_dim; i += LANES)
        own = fmaf(single(grad[item * head_dim + i]), out[item * head_dim + i], own);
    const float sum = sum_of_lanes(own);
    if (lane == 0) along[item % heads * tokens + item / heads] = sum;
}

} // namespace attention

extern "C" __global__ void attention_along(const float *grad, const float *out, float *along,
                                           uint64_t tokens, unsigned heads, unsigned head_dim) {
    attention::sum_along(grad, out, along, tokens, heads, head_dim);
}
KERNEL(attention_along)

extern "C" __global__ void attention_along_bfloat16(const uint16_t *grad, const float *out,
                                                    float *along, uint64_t tokens, unsigned heads,
                                                    unsigned head_dim) {
    attention::sum_along(grad, out, along, tokens, heads, head_dim);
}
KERNEL(attention_along_bfloat16)

#define ATTENTION_KERNELS(D, ROWS, COLS)                                                           \
    extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_##D(                       \
        const float *qkv, const unsigned *items, uint64_t tokens, unsigned query_heads,            \
        unsigned kv_heads, unsigned head_dim, unsigned window, float scale, float *out,            \
        float *sums) {                                                                             \
        attention::forward<D, ROWS, COLS>(                                                         \
            {qkv, items, tokens, query_heads, kv_heads, head_dim, window, scale}, out, sums);      \
    }                                                                                              \
    KERNEL(attention_forward_##D)                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_keys_##D(                 \
        const float *qkv, const unsigned *items, uint64_t tokens, unsigned query_heads,            \
        unsigned kv_heads, unsigned head_dim, unsigned window, float scale, const float *grad,     \
        const float *sums, const float *along, float *dqkv, unsigned item_count) {                 \
        attention::backward_keys<D, ROWS, COLS>(                                                   \
            {qkv, items, tokens, query_heads, kv_heads, head_dim, window, scale},                  \
            {grad, sums, along}, dqkv, item_count);                                                \
    }                                                                                              \
    KERNEL(attention_backward_keys_##D)                                                            \
    extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_queries_##D(              \
        const float *qkv, const unsigned *items, uint64_t tokens, unsigned query_heads,            \
        unsigned kv_heads, unsigned head_dim, unsigned window, float scale, const float *grad,     \
        const float *sums, const float *along, float *dqkv) {                                      \
        attention::backward_queries<D, ROWS, COLS>(                                                \
            {qkv, items, tokens, query_heads, kv_heads, head_dim, window, scale},                  \
            {grad, sums, along}, dqkv);                                                            \
    }                                                                                              \
    KERNEL(attention_backward_queries_##D)

// Columns of a head, rows / 16 of a tile, and rows / 8 of the other side; src/device/attention has
// the same sizes.
ATTENTION_KERNELS(32, 4, 4)
ATTENTION_KERNELS(64, 4, 4)
ATTENTION_KERNELS(128, 2, 4)
ATTENTION_KERNELS(256, 1, 2)
