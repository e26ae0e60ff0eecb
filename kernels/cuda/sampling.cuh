// What the kernels of sampling share: the settings of a draw, its random number, and selection by
// mass.
#pragma once
#include "distribution.cuh"

// Logits that one block of threads reads.
constexpr unsigned PART = 4096;
constexpr unsigned NO_ID = ~0u;

__device__ __forceinline__ float infinity() {
    return __uint_as_float(0x7f800000u);
}

// One draw, as `DrawBatch` lays it out in words.
struct DrawSettings {
    // Row of the logits.
    unsigned row;
    // 1 for the most probable token.
    unsigned greedy;
    float temperature, inv_temperature;
    // 0 keeps all tokens.
    unsigned top_k;
    float top_p, min_p;
    // Range within the list of suppressed ids.
    unsigned first_suppressed, end_suppressed;
    // 1 if the random number is that of `key` and `counter`; else `counter` begins with its bits.
    unsigned keyed;
    unsigned key[2];
    unsigned counter[4];

    __device__ __forceinline__ bool suppresses() const {
        return first_suppressed < end_suppressed;
    }

    // Whether the distribution may be a part of the vocabulary.
    __device__ __forceinline__ bool cuts() const {
        return !greedy && (suppresses() || top_k > 0 || top_p < 1.0f || min_p > 0.0f);
    }
};

static_assert(sizeof(DrawSettings) == 64, "the size in sampling/batch.rs");

// A row of logits in which suppressed tokens are impossible.
struct AllowedRow {
    const float *logits;
    const unsigned *suppressed, *end;

    __device__ __forceinline__ AllowedRow(const float *rows, uint64_t vocabulary,
                                          const DrawSettings &draw, const unsigned *ids)
        : logits(rows + draw.row * vocabulary), suppressed(ids + draw.first_suppressed),
          end(ids + draw.end_suppressed) {}

    __device__ __forceinline__ float operator[](uint64_t i) const {
        for (const unsigned *id = suppressed; id < end; id++)
            if (*id == i) return -infinity();
        return logits[i];
    }
};

// The largest elements of a row, or of a part of it.
struct Extremes {
    // The largest of all logits, and of the allowed ones.
    float whole, best;
    // The first allowed token that has the best logit.
    unsigned id;
    // The first logit that is NaN or +∞.
    unsigned fault;
};

__device__ __forceinline__ Extremes no_extremes() {
    return {-infinity(), -infinity(), NO_ID, NO_ID};
}

__device__ __forceinline__ Extremes merged(Extremes a, Extremes b) {
    if (b.whole > a.whole) a.whole = b.whole;
    if (b.best > a.best || (b.best == a.best && b.id < a.id)) {
        a.best = b.best;
        a.id = b.id;
    }
    a.fault = min_of(a.fault, b.fault);
    return a;
}

// Those of the whole row, from its parts'.
__device__ __forceinline__ Extremes extremes_of(const Extremes *parts, uint64_t draw,
                                                unsigned count) {
    Extremes all = no_extremes();
    for (unsigned part = 0; part < count; part++) all = merged(all, parts[draw * count + part]);
    return all;
}

// The word whose unsigned order is that of `f32::total_cmp`.
__device__ __forceinline__ unsigned order_of(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(unsigned order) {
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

// The most probable token has the largest key; among equal logits, the lowest id.
__device__ __forceinline__ uint64_t key_of(float logit, uint64_t id) {
    return uint64_t(order_of(logit)) << 32 | (0xffffffffu - unsigned(id));
}

// Integers, so that their sums do not depend on an order.
using Mass = unsigned long long;

// The mass of a weight of 1, as in `rollout::filter`.
constexpr float UNIT_MASS = 8796093022208.0f; // 2^43

__device__ __forceinline__ Mass mass_of(float weight) {
    return static_cast<Mass>((weight < 2.0f ? weight : 2.0f) * UNIT_MASS);
}

// Shared memory of a selection.
struct Selection {
    // Masses of the items by one digit of their keys.
    Mass bins[256];
    // The digit at which the target is reached, or NO_ID; the mass above it, and its own.
    unsigned digit;
    Mass above, own;
    // Mass of all candidates, and their number.
    Mass total;
    unsigned count;
};

static_assert(sizeof(Selection) == 2088, "the size in sampling.rs");

// Adds each lane's mass to its bin; NO_ID for none. In the first digits most items of a warp share
// one bin, which then gets one addition.
__device__ __forceinline__ void tally(Mass *bins, unsigned bin, Mass mass) {
    const unsigned first = __shfl_sync(~0u, bin, 0, 32);
    if (__ballot_sync(~0u, bin == first) == ~0u) {
        for (unsigned half = 16; half > 0; half /= 2) mass += __shfl_xor_sync(~0u, mass, half, 32);
        if (threadIdx.x % 32 == 0 && bin != NO_ID) atomicAdd(&bins[bin], mass);
    } else if (bin != NO_ID) {
        atomicAdd(&bins[bin], mass);
    }
}

// Finds the digit at which the masses, from the largest digit down, reach `target`, which is above
// 0. One warp.
__device__ __forceinline__ void find_digit(Selection &selection, Mass target) {
    const unsigned lane = threadIdx.x % 32, top = 255 - 8 * lane;
    Mass own = 0;
    for (unsigned i = 0; i < 8; i++) own += selection.bins[top - i];
    Mass sum = own;
    for (unsigned delta = 1; delta < 32; delta *= 2) {
        const Mass before = __shfl_up_sync(~0u, sum, delta, 32);
        if (lane >= delta) sum += before;
    }
    if (lane == 31 && sum < target) selection.digit = NO_ID;
    Mass above = sum - own;
    if (above >= target || sum < target) return;
    unsigned digit = top;
    while (above + selection.bins[digit] < target) above += selection.bins[digit--];
    selection.digit = digit;
    selection.above = above;
    selection.own = selection.bins[digit];
}

// The smallest key of the shortest run of items, from the largest key down, whose mass reaches
// `target`, which is above 0; 0 if all of them together do not. `key` and `mass` are functions of an
// item's index. A run ends within the items of one logit, by their ids, if it can do without one of
// them: `tie` gives the mass of an item with this logit. Else the low half of the key is 0.
template <class Key, class MassOf, class Tie>
__device__ __forceinline__ uint64_t key_at_mass(Selection &selection, uint64_t count, Mass target,
                                                Key key, MassOf mass, Tie tie) {
    uint64_t prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (unsigned bin = threadIdx.x; bin < 256; bin += blockDim.x) selection.bins[bin] = 0;
        __syncthreads();
        for (uint64_t i = threadIdx.x; i - threadIdx.x < count; i += blockDim.x) {
            const uint64_t own = i < count ? key(i) : 0;
            const bool counts = i < count && own >> shift >> 8 == prefix;
            tally(selection.bins, counts ? own >> shift & 255 : NO_ID, counts ? mass(i) : 0);
        }
        __syncthreads();
        if (threadIdx.x < 32) find_digit(selection, target);
        __syncthreads();
        if (selection.digit == NO_ID) return 0;
        prefix = prefix << 8 | selection.digit;
        target -= selection.above;
        if (shift == 32 && selection.own - target < tie(value_of(prefix))) return prefix << 32;
    }
    return prefix;
}

// The words of a block of Philox4x32-10 (`random::philox4x32`).
struct Words {
    unsigned word[4];
};

__device__ __forceinline__ Words philox(Words counter, unsigned key0, unsigned key1) {
    for (unsigned round = 0; round < 10; round++) {
        const uint64_t first = uint64_t(0xD2511F53u) * counter.word[0];
        const uint64_t second = uint64_t(0xCD9E8D57u) * counter.word[2];
        counter = {{unsigned(second >> 32) ^ counter.word[1] ^ key0, unsigned(second),
                    unsigned(first >> 32) ^ counter.word[3] ^ key1, unsigned(first)}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// The draw's random number in [0, 1) (`random::Key::uniform`).
__device__ __forceinline__ double uniform_of(const DrawSettings &draw) {
    Words words = {{draw.counter[0], draw.counter[1], draw.counter[2], draw.counter[3]}};
    if (draw.keyed) words = philox(words, draw.key[0], draw.key[1]);
    const uint64_t bits = uint64_t(words.word[1]) << 32 | words.word[0];
    return draw.keyed ? static_cast<double>(bits >> 11) * 0x1p-53 : __longlong_as_double(bits);
}
