// Kernels with one fault each, which the emulator's tests must find.
#include "../cuda/device.cuh"

// Only half of the block waits at the barrier.
extern "C" __global__ void faulty_divergent_barrier(unsigned *out) {
    if (threadIdx.x < blockDim.x / 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}
KERNEL(faulty_divergent_barrier)

// One thread has ended while the others wait for it.
extern "C" __global__ void faulty_early_return(unsigned *out) {
    if (threadIdx.x == 0) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
KERNEL(faulty_early_return)

// Reads what another thread writes to shared memory, without a barrier.
extern "C" __global__ void faulty_race(unsigned *out) {
    SHARED_MEMORY(unsigned, shared);
    shared[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
KERNEL(faulty_race)

// Each warp overwrites what another one reads, without a barrier between reads and writes.
extern "C" __global__ void faulty_overtaking(unsigned *out) {
    SHARED_MEMORY(unsigned, shared);
    shared[threadIdx.x] = threadIdx.x;
    __syncthreads();
    unsigned sum = 0;
    for (unsigned i = 0; i < 2; i++) {
        sum += shared[blockDim.x - 1 - threadIdx.x];
        __syncwarp(~0u);
    }
    shared[threadIdx.x] = 0;
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
KERNEL(faulty_overtaking)

// Reads shared memory that no thread has written.
extern "C" __global__ void faulty_uninitialised(float *out) {
    SHARED_MEMORY(float, shared);
    out[threadIdx.x] = shared[threadIdx.x];
}
KERNEL(faulty_uninitialised)

// Lanes wait for a mask that does not name them.
extern "C" __global__ void faulty_mask(unsigned *out) {
    __syncwarp(0x0000ffffu);
    out[threadIdx.x] = 1;
}
KERNEL(faulty_mask)

// Lanes read a lane that the mask does not name.
extern "C" __global__ void faulty_read(unsigned *out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1u, 16, 32);
}
KERNEL(faulty_read)

// Lanes wait for a lane that has ended.
extern "C" __global__ void faulty_ended_lane(unsigned *out) {
    if (threadIdx.x == 5) return;
    __syncwarp(~0u);
    out[threadIdx.x] = 1;
}
KERNEL(faulty_ended_lane)

// The halves of a warp wait for each other in different places.
extern "C" __global__ void faulty_deadlock(unsigned *out) {
    if (threadIdx.x % 32 < 16) {
        __syncwarp(~0u);
    } else {
        __syncwarp(~0u);
    }
    out[threadIdx.x] = 1;
}
KERNEL(faulty_deadlock)

// Writes one element behind the array.
extern "C" __global__ void faulty_overrun(unsigned *out) {
    out[gridDim.x * blockDim.x] = 1;
}
KERNEL(faulty_overrun)

// Exchanges within warps, a barrier and shared memory, used as they should be: the sum of the
// thread indices, for each thread.
extern "C" __global__ void sound_sum(unsigned *out) {
    SHARED_MEMORY(unsigned, shared);
    unsigned sum = threadIdx.x;
    for (unsigned distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(~0u, sum, distance, 32);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += shared[warp];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
KERNEL(sound_sum)
