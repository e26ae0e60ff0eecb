// Instructions of tensor cores and asynchronous copies as host C++, from the tables of the PTX ISA
// manual ("Warp Level Matrix Multiply-Accumulate Instructions", "ldmatrix", "cp.async"). tinygrad's
// ops_python.py and CUTLASS's mma_traits_sm80.hpp have the same layouts.
#pragma once

#include "cuda_emulator.h"

#include <vector>

namespace emulator {

// One half of a word, as a number of type bfloat16.
inline float bfloat16_half(unsigned word, unsigned half) {
    const unsigned bits = (half ? word >> 16 : word & 0xffff) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// mma.m16n8k16 with bfloat16 factors ("Matrix Fragments for mma.m16n8k16 with floating point
// type"), g = lane / 4, t = lane % 4: element i of A is in row g (+ 8 if i / 2 is odd) and column
// 2 t + i % 2 (+ 8 if i >= 4); of B in row 2 t + i % 2 (+ 8 if i >= 2) and column g; of C in row g
// (+ 8 if i >= 2) and column 2 t + i % 2. A sum is rounded once; the order in which a device adds
// is not specified.
inline void multiply_add(float *c, const unsigned *a, const unsigned *b) {
    struct Factors {
        const unsigned *a, *b;
    } own = {a, b};
    const uint64_t *lanes =
        emulated_exchange(~0u, __LINE__, reinterpret_cast<uint64_t>(&own));
    const auto factors = [&](unsigned lane) { return reinterpret_cast<Factors *>(lanes[lane]); };
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        double sum = c[i];
        for (unsigned k = 0; k < 16; k++) {
            const unsigned pair = k % 8 / 2;
            const Factors *left = factors(row % 8 * 4 + pair), *right = factors(column * 4 + pair);
            sum += double(bfloat16_half(left->a[row / 8 + k / 8 * 2], k % 2)) *
                   bfloat16_half(right->b[k / 8], k % 2);
        }
        c[i] = float(sum);
    }
    // No lane goes on while others read its factors.
    (void)emulated_exchange(~0u, __LINE__, 0);
}

// ldmatrix.x4: lane 8 m + r has the address of row r of matrix m, and lane l receives the elements
// 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix, or of each transposed matrix.
inline void load_matrices(unsigned *words, const uint16_t *row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
        emulated_failure("a row of a matrix is not aligned to 16 bytes", __LINE__);
    const uint64_t *rows = emulated_exchange(~0u, __LINE__, reinterpret_cast<uint64_t>(row));
    const unsigned own = lane() / 4, pair = lane() % 4 * 2;
    for (unsigned m = 0; m < 4; m++) {
        const auto element = [&](unsigned r, unsigned column) -> unsigned {
            return reinterpret_cast<const uint16_t *>(rows[8 * m + r])[column];
        };
        words[m] = transposed ? element(pair, own) | element(pair + 1, own) << 16
                              : element(own, pair) | element(own, pair + 1) << 16;
    }
}

// A copy that a thread has begun.
struct AsyncCopy {
    void *to;
    const void *from;
    unsigned group;
};

// The copies of the threads of a block, and the groups that each thread has committed.
struct AsyncCopies {
    std::vector<AsyncCopy> copies;
    unsigned groups = 0;
};

inline thread_local AsyncCopies async_copies[1024];

inline AsyncCopies &own_copies() {
    return async_copies[emulated_thread()->thread.x];
}

// cp.async of 16 bytes; a null source stands for zeros. The bytes arrive when the thread waits for
// them; until then they are those of NaN.
inline void copy_async(void *to, const void *from) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
        emulated_failure("an asynchronous copy is not aligned to 16 bytes", __LINE__);
    std::memset(to, 0xff, 16);
    own_copies().copies.push_back({to, from, own_copies().groups});
}

// cp.async.commit_group
inline void commit_copies() {
    own_copies().groups++;
}

// cp.async.wait_group: all but the `pending` newest groups of the thread arrive.
inline void wait_for_copies(unsigned pending) {
    AsyncCopies &own = own_copies();
    std::vector<AsyncCopy> rest;
    for (const AsyncCopy &copy : own.copies) {
        if (copy.group + pending >= own.groups) rest.push_back(copy);
        else if (copy.from) std::memcpy(copy.to, copy.from, 16);
        else std::memset(copy.to, 0, 16);
    }
    own.copies = rest;
}

} // namespace emulator
