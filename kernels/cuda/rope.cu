// Rotary position embedding in the half-split form, in place.
#include "device.cuh"

// Rotates the first `heads` heads of each row of `[rows, columns]`, a pair for each thread. Angles
// are `[rows, half]`; `direction` is 1 forward and -1 backward.
extern "C" __global__ void rope(float *x, const float *cosines, const float *sines, uint64_t rows,
                                unsigned columns, unsigned heads, unsigned half, float direction) {
    const uint64_t pair = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t pairs = uint64_t(heads) * half;
    if (pair >= rows * pairs) return;
    const uint64_t row = pair / pairs;
    const unsigned head = pair % pairs / half, i = pair % half;
    float *low = x + row * columns + head * 2 * half + i, *high = low + half;
    const float a = *low, b = *high;
    const float cosine = cosines[row * half + i], sine = direction * sines[row * half + i];
    *low = a * cosine - b * sine;
    *high = b * cosine + a * sine;
}
KERNEL(rope)
