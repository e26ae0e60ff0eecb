// Products of tiles in bfloat16 on tensor cores, and what loads them: PTX on the device, functions
// with the same layouts in the emulator.
#pragma once
#include "device.cuh"

#ifndef __CUDACC__
#include "tensor_cores.h"
#endif

namespace tensor {

#ifdef __CUDACC__
__device__ __forceinline__ unsigned shared_address(const void *pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
#endif

// c += a b for a 16 x 16 tile `a` and a 16 x 8 tile `b`, in the fragments of
// mma.sync.aligned.m16n8k16.row.col: see emulator/tensor_cores.h.
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4],
                                             unsigned b_low, unsigned b_high) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
#else
    const unsigned b[2] = {b_low, b_high};
    emulator::multiply_add(c, a, b);
#endif
}

// Loads four 8 x 8 matrices from shared memory: lane 8 m + r gives row r of matrix m.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const uint16_t *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulator::load_matrices(words, row, false);
#endif
}

// Loads four 8 x 8 matrices and transposes them.
__device__ __forceinline__ void load_transposed(unsigned (&words)[4], const uint16_t *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulator::load_matrices(words, row, true);
#endif
}

// Two numbers, rounded to bfloat16; `low` is in the lower half.
__device__ __forceinline__ unsigned packed(float low, float high) {
#ifdef __CUDACC__
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return bfloat16_bits(low) | unsigned(bfloat16_bits(high)) << 16;
#endif
}

// Begins to copy 16 bytes to shared memory, or to fill them with zeros.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool zero) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(zero ? 0 : 16)
                 : "memory");
#else
    emulator::copy_async(to, zero ? nullptr : from);
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::commit_copies();
#endif
}

// Waits for the calling thread's copies, but for those of the PENDING newest groups.
template <unsigned PENDING> __device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    emulator::wait_for_copies(PENDING);
#endif
}

} // namespace tensor
