// What all kernels share: the arithmetic that must have the host's bits, and how kernels are
// declared. Compiled by NVRTC on the device (with --fmad=false) and by the emulator's C++ compiler.
#pragma once

#ifdef __CUDACC__
#ifdef __CUDACC_RTC__ // NVRTC has no <cstdint>
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int32_t = int;
using uint64_t = unsigned long long;
using int64_t = long long;
#endif
#define SHARED_MEMORY(type, name)                                                                  \
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];                         \
    type *name = reinterpret_cast<type *>(dynamic_shared_memory)
#define KERNEL(kernel)
#else
#include "cuda_emulator.h"
#endif

// Width of the partial sums of a row: element i is added to lane i mod 16, as on the host.
constexpr unsigned LANES = 16;

// The lanes of the half of a warp to which the calling thread belongs.
__device__ __forceinline__ unsigned half_warp() {
    return 0xffffu << (threadIdx.x % 32 / LANES * LANES);
}

// The sum over the 16 lanes of a half warp, in ascending order, for each of them.
__device__ __forceinline__ float sum_of_lanes(float own) {
    const unsigned mask = half_warp();
    float sum = -0.0f;
    for (unsigned lane = 0; lane < LANES; lane++) sum += __shfl_sync(mask, own, lane, LANES);
    return sum;
}

// The smaller of two numbers.
template <class T> __device__ __forceinline__ T min_of(T a, T b) {
    return b < a ? b : a;
}

// A number rounded to bfloat16, to nearest even.
__device__ __forceinline__ uint16_t bfloat16_bits(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// e to the power of x, with the bits of `host::row::exp`.
__device__ __forceinline__ float exponential(float x) {
    const float ROUND = 12582912.0f; // 1.5 * 2^23
    const float LN_2_HIGH = 0.693147182f, LN_2_LOW = -1.9046543e-9f;
    const float shifted = fmaf(x, 1.44269502f, ROUND);
    const float n = shifted - ROUND;
    const float r = fmaf(n, -LN_2_LOW, fmaf(n, -LN_2_HIGH, x));
    float q = fmaf(0.0013814602f, r, 0.008368716f);
    q = fmaf(q, r, 0.04166839f);
    q = fmaf(q, r, 0.16666521f);
    q = fmaf(q, r, 0.49999994f);
    const float mantissa = fmaf(q, r * r, r) + 1.0f;
    const unsigned exponent = (__float_as_uint(shifted) - __float_as_uint(ROUND)) << 23;
    float y = __uint_as_float(__float_as_uint(mantissa) + exponent);
    y = x < -87.33654f ? 0.0f : y;
    return x <= 88.72283f ? y : x + __uint_as_float(0x7f800000u);
}
