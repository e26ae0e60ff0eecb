// What all attention kernels share: which keys a query sees, and tiles of rows in shared memory.
#pragma once
#include "device.cuh"

namespace attention {

// Threads of a block, in every attention kernel.
constexpr unsigned THREADS = 128;
// Stands for the largest score of no scores; finite, so that differences are no NaN.
constexpr float NO_SCORE = -3.0e38f;

// The larger of two scores.
__device__ __forceinline__ float larger(float a, float b) {
    return a < b ? b : a;
}

// The first key that the query at `position` sees.
__device__ __forceinline__ unsigned first_key(unsigned position, unsigned window) {
    return position < window ? 0 : position - window + 1;
}

// Whether a query sees a key, for windows of at most 2^31: keys behind the query are farther away.
__device__ __forceinline__ bool sees(unsigned query, unsigned key, unsigned window) {
    return query - key < window;
}

__device__ __forceinline__ float4 load_four(const float *from) {
    return *reinterpret_cast<const float4 *>(from);
}

__device__ __forceinline__ void store_four(float *to, float4 value) {
    *reinterpret_cast<float4 *>(to) = value;
}

// a + b c, element by element.
__device__ __forceinline__ void add_product(float4 &a, float b, float4 c) {
    a.x = fmaf(b, c.x, a.x);
    a.y = fmaf(b, c.y, a.y);
    a.z = fmaf(b, c.z, a.z);
    a.w = fmaf(b, c.w, a.w);
}

// sum + a b, as one chain over the elements.
__device__ __forceinline__ float dot_four(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Rows of an item of packed work.
constexpr unsigned ITEM_ROWS = 64;

// Packed rows, and the sizes of a layer.
template <class T> struct Layer {
    const T *qkv;
    const unsigned *items;
    uint64_t tokens;
    unsigned query_heads, kv_heads, head_dim, window;
    float scale;

    __device__ unsigned columns() const { return (query_heads + 2 * kv_heads) * head_dim; }
    __device__ unsigned outputs() const { return query_heads * head_dim; }
    __device__ unsigned group() const { return query_heads / kv_heads; }
};

// A tile of a segment: the segment's first row and length, and the first position of the tile.
struct Item {
    uint64_t segment;
    unsigned length, start;
};

// The item `index`, of which this block has the tile of `rows` rows numbered `part`.
__device__ __forceinline__ Item item_of(const unsigned *items, unsigned index, unsigned part,
                                        unsigned rows) {
    const unsigned *item = items + 3 * uint64_t(index);
    return {item[0], item[1], item[2] + part * rows};
}

// What the backward pass reads beside the rows.
template <class T> struct Known {
    const T *grad;      // `[tokens, outputs]`
    const float *sums;  // `[query_heads, tokens]`
    const float *along; // `[query_heads, tokens]`: rows of grad times the result
};

} // namespace attention
