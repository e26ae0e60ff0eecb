// The part of the CUDA language that the kernels use, as host C++.
//
// A thread of a block is a coroutine of the emulator in src/device/emulator, which runs one thread until
// it waits for others. Everything that a thread learns about itself, and everything for which it
// waits, goes through the functions declared here.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// The running thread. The layout is that of `ThreadState` in src/device/emulator/thread.rs.
struct Thread {
    Index thread, block, block_size, grid_size;
    unsigned char *shared;
};

// A kernel under its name. The layout of the first four fields is that of `Entry` in
// src/device/emulator/entry.rs.
struct Entry {
    const char *name;
    void (*call)(void *const *arguments);
    const size_t *sizes;
    size_t count;
    const Entry *next;
};

// All kernels, the last one first.
inline const Entry *entries = nullptr;

extern "C" {
const Thread *emulated_thread();
void emulated_sync_threads(int site);
// Waits for all lanes in `mask` to arrive at `site` with their values, and returns those of the
// warp's 32 lanes.
const uint64_t *emulated_exchange(unsigned mask, int site, uint64_t value);
[[noreturn]] void emulated_failure(const char *message, int line);
}

template <auto Kernel> struct Call;

template <class... Parameter, void (*Kernel)(Parameter...)> struct Call<Kernel> {
    static constexpr size_t sizes[] = {sizeof(Parameter)...};
    static constexpr size_t count = sizeof...(Parameter);

    static void call(void *const *arguments) {
        call(arguments, std::make_index_sequence<sizeof...(Parameter)>());
    }

    template <size_t... I> static void call(void *const *arguments, std::index_sequence<I...>) {
        Kernel(*static_cast<Parameter *>(arguments[I])...);
    }
};

inline unsigned lane() {
    return emulated_thread()->thread.x % 32;
}

template <class T> T exchanged(unsigned mask, int site, T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "a lane passes at most eight bytes");
    if (!(mask >> from & 1)) emulated_failure("a lane outside the mask is read", site);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = emulated_exchange(mask, site, bits)[from];
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

// The lane `delta` away within a group of `width` lanes, or the lane itself outside of it.
inline unsigned neighbour(int delta, int width) {
    int own = lane(), within = own % width + delta;
    return within < 0 || within >= width ? own : own + delta;
}

template <class T> T ballot(unsigned mask, int site, T predicate) {
    const uint64_t *values = emulated_exchange(mask, site, predicate != 0);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && values[i]) votes |= 1u << i;
    return votes;
}

} // namespace emulator

#define threadIdx (emulated_thread()->thread)
#define blockIdx (emulated_thread()->block)
#define blockDim (emulated_thread()->block_size)
#define gridDim (emulated_thread()->grid_size)
using emulator::emulated_thread;

#define __syncthreads() emulator::emulated_sync_threads(__LINE__)
#define __syncwarp(mask) (void)emulator::emulated_exchange(mask, __LINE__, 0)
#define __shfl_sync(mask, value, from, width)                                                      \
    emulator::exchanged(mask, __LINE__, value,                                                     \
                        emulator::lane() / (width) * (width) + (from) % (width))
#define __shfl_xor_sync(mask, value, bits, width)                                                  \
    emulator::exchanged(mask, __LINE__, value, emulator::lane() ^ (bits))
#define __shfl_down_sync(mask, value, delta, width)                                                \
    emulator::exchanged(mask, __LINE__, value, emulator::neighbour(delta, width))
#define __shfl_up_sync(mask, value, delta, width)                                                  \
    emulator::exchanged(mask, __LINE__, value, emulator::neighbour(-int(delta), width))
#define __ballot_sync(mask, predicate) emulator::ballot<unsigned>(mask, __LINE__, predicate)

// A kernel's shared memory. Its size is an argument of the launch.
#define SHARED_MEMORY(type, name) type *name = reinterpret_cast<type *>(emulated_thread()->shared)

// Makes the kernel known under its name.
#define KERNEL(kernel)                                                                             \
    static const emulator::Entry entry_of_##kernel = {                                             \
        #kernel, emulator::Call<kernel>::call, emulator::Call<kernel>::sizes,                      \
        emulator::Call<kernel>::count, std::exchange(emulator::entries, &entry_of_##kernel)};

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};

inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z,
                            unsigned short w) {
    return {x, y, z, w};
}

inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

// Only one thread runs at a time.
template <class T> T atomicAdd(T *to, T value) {
    return std::exchange(*to, *to + value);
}

inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}

inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
