// SwiGLU and GELU, forward and backward, an element for each thread.
#include "device.cuh"

// `[rows, 2 width]` holding gate | up -> `[rows, width]`.
extern "C" __global__ void swiglu_forward(const float *x, float *y, uint64_t rows,
                                          unsigned width) {
    const uint64_t element = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= rows * width) return;
    const uint64_t at = element / width * 2 * width + element % width;
    const float gate = x[at], up = x[at + width];
    y[element] = gate / (1.0f + exponential(-gate)) * up;
}
KERNEL(swiglu_forward)

extern "C" __global__ void swiglu_backward(const float *x, const float *dy, float *dx,
                                           uint64_t rows, unsigned width) {
    const uint64_t element = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= rows * width) return;
    const uint64_t at = element / width * 2 * width + element % width;
    const float gate = x[at], up = x[at + width], d = dy[element];
    const float sigmoid = 1.0f / (1.0f + exponential(-gate)), silu = gate * sigmoid;
    dx[at + width] = d * silu;
    dx[at] = d * up * (sigmoid + silu * (1.0f - sigmoid));
}
KERNEL(swiglu_backward)

constexpr float SQRT_2_OVER_PI = 0.7978846f, CUBIC = 0.044715f;

// The hyperbolic tangent in GELU's tanh form.
__device__ __forceinline__ float gelu_tanh(float x) {
    const float inner = SQRT_2_OVER_PI * (x + CUBIC * x * x * x);
    return 1.0f - 2.0f / (exponential(2.0f * inner) + 1.0f);
}

extern "C" __global__ void gelu_tanh_forward(const float *x, float *y, uint64_t count) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) y[i] = 0.5f * x[i] * (1.0f + gelu_tanh(x[i]));
}
KERNEL(gelu_tanh_forward)

// Replaces dy by dx in `d`.
extern "C" __global__ void gelu_tanh_backward(const float *x, float *d, uint64_t count) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float t = gelu_tanh(x[i]);
    const float inner = SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * x[i] * x[i]);
    d[i] *= 0.5f * (1.0f + t) + 0.5f * x[i] * (1.0f - t * t) * inner;
}
KERNEL(gelu_tanh_backward)

// The exact form, by the error function in double precision as on the host.
extern "C" __global__ void gelu_forward(const float *x, float *y, uint64_t count) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) y[i] = static_cast<float>(x[i] * (0.5 * (1.0 + erf(x[i] * 0.70710678118654752))));
}
KERNEL(gelu_forward)

// Replaces dy by dx in `d`.
extern "C" __global__ void gelu_backward(const float *x, float *d, uint64_t count) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const double value = x[i];
    const double distribution = 0.5 * (1.0 + erf(value * 0.70710678118654752));
    const double density = exp(-0.5 * value * value) * 0.39894228040143268;
    d[i] *= static_cast<float>(distribution + value * density);
}
KERNEL(gelu_backward)
