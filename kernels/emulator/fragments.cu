// Single instructions of `mma.cuh`, for the emulator's tests.
#include "../cuda/mma.cuh"

// c += a b, where each lane has its own four, two and four registers.
extern "C" __global__ void fragment_product(const unsigned *a, const unsigned *b, float *c) {
    const unsigned *own_a = a + 4 * threadIdx.x, *own_b = b + 2 * threadIdx.x;
    const unsigned left[4] = {own_a[0], own_a[1], own_a[2], own_a[3]};
    float sums[4];
    for (unsigned i = 0; i < 4; i++) sums[i] = c[4 * threadIdx.x + i];
    tensor::multiply_add(sums, left, own_b[0], own_b[1]);
    for (unsigned i = 0; i < 4; i++) c[4 * threadIdx.x + i] = sums[i];
}
KERNEL(fragment_product)

// Four matrices of eight rows, one after the other, as they are and transposed: `[2][lane][4]`.
extern "C" __global__ void fragment_loads(const unsigned *rows, unsigned *words) {
    SHARED_MEMORY(uint16_t, shared);
    tensor::copy_async(shared + 8 * threadIdx.x, rows + 4 * threadIdx.x, false);
    tensor::commit_copies();
    tensor::wait_for_copies<0>();
    __syncwarp(~0u);
    unsigned own[4], transposed[4];
    tensor::load_matrices(own, shared + 8 * threadIdx.x);
    tensor::load_transposed(transposed, shared + 8 * threadIdx.x);
    for (unsigned i = 0; i < 4; i++) {
        words[4 * threadIdx.x + i] = own[i];
        words[128 + 4 * threadIdx.x + i] = transposed[i];
    }
}
KERNEL(fragment_loads)

// Two copies of 16 bytes and zeros: before their groups have arrived, with one group outstanding,
// and after all have arrived.
extern "C" __global__ void fragment_copies(const unsigned *from, unsigned *seen) {
    SHARED_MEMORY(unsigned, shared);
    for (unsigned i = 0; i < 12; i++) shared[i] = 1;
    tensor::copy_async(shared, from, false);
    tensor::commit_copies();
    tensor::copy_async(shared + 4, from + 4, false);
    tensor::copy_async(shared + 8, from, true);
    tensor::commit_copies();
    for (unsigned i = 0; i < 12; i++) seen[i] = shared[i];
    tensor::wait_for_copies<1>();
    for (unsigned i = 0; i < 12; i++) seen[12 + i] = shared[i];
    tensor::wait_for_copies<0>();
    for (unsigned i = 0; i < 12; i++) seen[24 + i] = shared[i];
}
KERNEL(fragment_copies)
