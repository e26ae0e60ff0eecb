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

__device__ __forceinline__ bool sees(unsigned query, unsigned key, unsigned window) {
    return key <= query && query - key < window;
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

} // namespace attention
