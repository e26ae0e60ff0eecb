// Draws a token for each row of logits, with the host's bits (`rollout::draw_row`).
//
// The kernels run in this order: sample_extremes; sample_sums of whole rows; where draws cut their
// distributions sample_cut, sample_keep, sample_list and sample_sums of the kept sets; sample_draw.
// Block (x, y) reads part x of the row of draw y. The other kernels have a block for each draw.
#include "sampling.cuh"

constexpr unsigned WORDS = PART / 32;
// Threads of sample_cut.
constexpr unsigned CUT_THREADS = 1024;

// Extremes of each part, `[draws, parts]`, and the largest allowed logit that each thread has read,
// `[draws, parts, 256]`.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_extremes(const float *logits, const DrawSettings *draws, const unsigned *suppressed,
                    Extremes *extremes, float *maxima, uint64_t vocabulary) {
    SHARED_MEMORY(Extremes, shared);
    const AllowedRow row(logits, vocabulary, draws[blockIdx.y], suppressed);
    const uint64_t start = uint64_t(blockIdx.x) * PART, end = min_of(start + PART, vocabulary);
    Extremes own = no_extremes();
    for (uint64_t i = start + threadIdx.x; i < end; i += THREADS) {
        const float logit = row.logits[i];
        const unsigned id = i;
        own = merged(own, {logit, row[i], id, logit < infinity() ? NO_ID : id});
    }
    const uint64_t place = uint64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    maxima[place * THREADS + threadIdx.x] = own.best;
    shared[threadIdx.x] = own;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            shared[threadIdx.x] = merged(shared[threadIdx.x], shared[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) extremes[place] = shared[0];
}
KERNEL(sample_extremes)

// Number of ids that the parts before `part` keep.
__device__ __forceinline__ uint64_t kept_before(const unsigned *counts, uint64_t draw,
                                                unsigned parts, unsigned part) {
    uint64_t kept = 0;
    for (unsigned i = 0; i < part; i++) kept += counts[draw * parts + i];
    return kept;
}

// For each 256 logits of a row, or of a kept set where there are `ids`, the sum of their weights
// and of weight times distance to the maximum: `[draws, 2, sums]`.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_sums(const float *logits, const DrawSettings *draws, const Extremes *extremes,
                const unsigned *ids, const unsigned *counts, float *sums, uint64_t vocabulary) {
    const DrawSettings &draw = draws[blockIdx.y];
    if (ids && !draw.cuts()) return;
    const Extremes all = extremes_of(extremes, blockIdx.y, gridDim.x);
    Row row = {logits + draw.row * vocabulary, nullptr, vocabulary};
    if (ids) {
        row.kept = ids + blockIdx.y * vocabulary;
        row.count = kept_before(counts, blockIdx.y, gridDim.x, gridDim.x);
    }
    const float t = draw.inv_temperature, max = (ids ? all.best : all.whole) * t;
    const uint64_t block = uint64_t(blockIdx.x) * (PART / SUM_BLOCK) + threadIdx.x / LANES;
    const uint64_t start = block * SUM_BLOCK, end = min_of(start + SUM_BLOCK, row.count);
    if (start >= row.count) return;
    float weight = 0.0f, moment = 0.0f;
    for (uint64_t i = start + threadIdx.x % LANES; i < end; i += LANES) {
        const float distance = fmaf(row[i], t, -max), own = exponential(distance);
        weight += own;
        moment = fmaf(own, distance < -88.0f ? -88.0f : distance, moment);
    }
    weight = sum_of_tree(weight);
    moment = sum_of_tree(moment);
    const uint64_t blocks = (vocabulary + SUM_BLOCK - 1) / SUM_BLOCK;
    float *out = sums + 2 * blocks * blockIdx.y;
    if (threadIdx.x % LANES == 0) {
        out[block] = weight;
        out[blocks + block] = moment;
    }
}
KERNEL(sample_sums)

// Lists in `ids` the possible tokens with a logit of `least` or more, in any order. Those of a
// thread of sample_extremes are read if the largest of them is.
__device__ __forceinline__ void collect(Selection &selection, const AllowedRow &row,
                                        const float *maxima, uint64_t groups, float least,
                                        unsigned *ids, uint64_t vocabulary) {
    if (threadIdx.x == 0) selection.count = 0;
    __syncthreads();
    for (uint64_t group = threadIdx.x; group < groups; group += blockDim.x) {
        if (!(maxima[group] >= least)) continue;
        const uint64_t start = group / THREADS * PART, end = min_of(start + PART, vocabulary);
        for (uint64_t i = start + group % THREADS; i < end; i += THREADS) {
            const float logit = row[i];
            if (logit >= least && logit > -infinity()) ids[atomicAdd(&selection.count, 1u)] = i;
        }
    }
    __syncthreads();
}

// The sum of a row's weights (`host::row::stats`). `sums` are those of the whole row; those of a
// row with suppressed tokens are computed in `memory`.
__device__ __forceinline__ float sum_of_allowed(const AllowedRow &row, const DrawSettings &draw,
                                                const float *sums, float max, uint64_t vocabulary,
                                                float *memory, double *total) {
    if (draw.suppresses())
        return sum_over(vocabulary, memory, total, [&](float own, uint64_t i) {
            return own + exponential(fmaf(row[i], draw.inv_temperature, -max));
        });
    double sum = 0.0;
    for (uint64_t i = 0; i < (vocabulary + SUM_BLOCK - 1) / SUM_BLOCK; i++) sum += sums[i];
    return sum;
}

// A logit below which top-p cuts every token (`rollout::filter`, `negligible`).
__device__ __forceinline__ float negligible(const DrawSettings &draw, float max, float sum,
                                            uint64_t vocabulary) {
    const float tail = (1.0f - draw.top_p) * sum / static_cast<float>(vocabulary);
    const float margin = 1e-3f + 1e-6f * fabsf(max);
    const float distance = natural_log(tail > draw.min_p ? tail : draw.min_p);
    return (max + distance - margin) * draw.temperature;
}

// The k-th largest allowed logit, or −∞ where there are fewer.
__device__ __forceinline__ float kth_largest(Selection &selection, const AllowedRow &row,
                                             const float *maxima, uint64_t groups, unsigned *ids,
                                             uint64_t k, uint64_t vocabulary) {
    if (k >= vocabulary) return -infinity();
    const auto one = [](uint64_t) { return Mass(1); };
    const auto all = [](float) { return ~Mass(0); };
    float bound = -infinity();
    if (k <= groups) { // k logits are as large as the k-th largest of the maxima
        const auto key = [&](uint64_t i) { return key_of(maxima[i], 0); };
        bound = value_of(key_at_mass(selection, groups, k, key, one, all) >> 32);
    }
    collect(selection, row, maxima, groups, bound, ids, vocabulary);
    const auto key = [&](uint64_t i) { return key_of(row.logits[ids[i]], 0); };
    const uint64_t found = key_at_mass(selection, selection.count, k, key, one, all);
    return found == 0 ? -infinity() : value_of(found >> 32);
}

// Finds where top-k and top-p cut: the least logit and the least key (`key_of`) of the kept set.
extern "C" __global__ void __launch_bounds__(CUT_THREADS)
    sample_cut(const float *logits, const DrawSettings *draws, const unsigned *suppressed,
               const Extremes *extremes, const float *maxima, const float *sums, unsigned *ids,
               float *leasts, uint64_t *keys, uint64_t vocabulary, unsigned parts) {
    SHARED_MEMORY(Selection, memory);
    Selection &selection = *memory;
    double *total = reinterpret_cast<double *>(memory + 1);
    float *partial_sums = reinterpret_cast<float *>(total + 1);
    const DrawSettings &draw = draws[blockIdx.x];
    if (!draw.cuts()) return;
    const AllowedRow row(logits, vocabulary, draw, suppressed);
    const Extremes all = extremes_of(extremes, blockIdx.x, parts);
    const uint64_t groups = uint64_t(parts) * THREADS;
    maxima += blockIdx.x * groups;
    ids += blockIdx.x * vocabulary;
    sums += 2 * ((vocabulary + SUM_BLOCK - 1) / SUM_BLOCK) * blockIdx.x;
    const float t = draw.inv_temperature, max = all.best * t;
    const auto mass = [&](float logit) { return mass_of(exponential(fmaf(logit, t, -max))); };
    float least = -infinity();
    uint64_t key = 0;
    if (draw.top_k > 0)
        least = kth_largest(selection, row, maxima, groups, ids, draw.top_k, vocabulary);
    if (draw.top_p < 1.0f) {
        double whole = 0.0;
        if (draw.top_k == 0) {
            const float sum =
                sum_of_allowed(row, draw, sums, max, vocabulary, partial_sums, total);
            least = negligible(draw, max, sum, vocabulary);
            whole = static_cast<double>(sum) * UNIT_MASS;
        }
        collect(selection, row, maxima, groups, least, ids, vocabulary);
        const uint64_t count = selection.count;
        const auto mass_at = [&](uint64_t i) { return mass(row.logits[ids[i]]); };
        if (draw.top_k > 0) {
            if (threadIdx.x == 0) selection.total = 0;
            __syncthreads();
            for (uint64_t i = threadIdx.x; i - threadIdx.x < count; i += blockDim.x)
                tally(&selection.total, 0, i < count ? mass_at(i) : 0);
            __syncthreads();
            whole = static_cast<double>(selection.total);
        }
        const double target = ceil(static_cast<double>(draw.top_p) * whole);
        const Mass reached = target >= 1.0 && target < 0x1p63 ? static_cast<Mass>(target) : 1;
        const auto key_at = [&](uint64_t i) { return key_of(row.logits[ids[i]], ids[i]); };
        key = key_at_mass(selection, count, reached, key_at, mass_at, mass);
    }
    if (threadIdx.x == 0) {
        leasts[blockIdx.x] = least;
        keys[blockIdx.x] = key;
    }
}
KERNEL(sample_cut)

// Marks the kept ids by bits, `[draws, words]`, and counts those of each part, `[draws, parts]`.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_keep(const float *logits, const DrawSettings *draws, const unsigned *suppressed,
                const Extremes *extremes, const float *leasts, const uint64_t *keys, unsigned *bits,
                unsigned *counts, uint64_t vocabulary) {
    SHARED_MEMORY(unsigned, kept);
    const DrawSettings &draw = draws[blockIdx.y];
    if (!draw.cuts()) return;
    const AllowedRow row(logits, vocabulary, draw, suppressed);
    const Extremes all = extremes_of(extremes, blockIdx.y, gridDim.x);
    const float t = draw.inv_temperature, max = all.best * t, least = leasts[blockIdx.y];
    const uint64_t key = keys[blockIdx.y], start = uint64_t(blockIdx.x) * PART;
    bits += blockIdx.y * ((vocabulary + 31) / 32);
    unsigned own = 0;
    for (uint64_t i = start + threadIdx.x; i < start + PART; i += THREADS) {
        bool keeps = false;
        if (i < vocabulary) {
            const float logit = row[i];
            keeps = logit > -infinity() && logit >= least && key_of(logit, i) >= key;
            if (keeps && draw.min_p > 0.0f)
                keeps = exponential(fmaf(logit, t, -max)) >= draw.min_p || logit == all.best;
        }
        const unsigned word = __ballot_sync(~0u, keeps);
        own += __popc(word);
        if (threadIdx.x % 32 == 0 && i < vocabulary) bits[i / 32] = word;
    }
    if (threadIdx.x % 32 == 0) kept[threadIdx.x / 32] = own;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned warp = 1; warp < THREADS / 32; warp++) own += kept[warp];
    counts[uint64_t(blockIdx.y) * gridDim.x + blockIdx.x] = own;
}
KERNEL(sample_keep)

// Lists ids in ascending order. Without `offsets` the kept ones of draw y, if it cuts, from its row
// of `[draws, vocabulary]` on; with them the kept ones or the others, whichever are fewer, from
// `offsets[y]` to `offsets[y + 1]`, without a look at `draws`.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_list(const DrawSettings *draws, const unsigned *bits, const unsigned *counts,
                const uint64_t *offsets, unsigned *ids, uint64_t vocabulary) {
    const bool lists = offsets ? offsets[blockIdx.y] < offsets[blockIdx.y + 1]
                               : draws[blockIdx.y].cuts();
    if (!lists) return;
    const uint64_t kept = kept_before(counts, blockIdx.y, gridDim.x, gridDim.x);
    const unsigned inverted = offsets && kept > vocabulary / 2 ? ~0u : 0;
    const uint64_t start = uint64_t(blockIdx.x) * PART, words = (vocabulary + 31) / 32;
    uint64_t place = kept_before(counts, blockIdx.y, gridDim.x, blockIdx.x);
    if (inverted) place = start - place;
    ids += offsets ? offsets[blockIdx.y] : blockIdx.y * vocabulary;
    bits += blockIdx.y * words;
    const auto word = [&](uint64_t i) {
        if (i >= words) return 0u;
        const uint64_t left = vocabulary - i * 32;
        return (bits[i] ^ inverted) & (left < 32 ? (1u << left) - 1 : ~0u);
    };
    // Each warp lists the words of an eighth of the part.
    const unsigned lane = threadIdx.x % 32, first = threadIdx.x / 32 * (WORDS * 32 / THREADS);
    unsigned before = 0;
    for (unsigned i = lane; i < first; i += 32) before += __popc(word(start / 32 + i));
    for (unsigned half = 16; half > 0; half /= 2)
        before += __shfl_xor_sync(~0u, before, half, 32);
    place += before;
    for (unsigned i = first; i < first + WORDS * 32 / THREADS; i++) {
        const unsigned own = word(start / 32 + i);
        if (own >> lane & 1)
            ids[place + __popc(own & ((1u << lane) - 1))] = start + i * 32 + lane;
        place += __popc(own);
    }
}
KERNEL(sample_list)

// A place among weights, and how far into it a target lies.
struct Location {
    unsigned place;
    double rest;
};

// The first place at which the running sum of the weights exceeds the target
// (`rollout::sampling::locate`).
__device__ __forceinline__ Location locate(const float *weights, uint64_t count, double target) {
    Location last = {0, 0.0};
    for (unsigned place = 0; place < count; place++) {
        const double weight = weights[place];
        if (target < weight) return {place, target};
        if (weight > 0.0) last = {place, weight};
        target -= weight;
    }
    return last;
}

__device__ __forceinline__ double sum_of(const float *numbers, uint64_t count) {
    double sum = 0.0;
    for (uint64_t i = 0; i < count; i++) sum += numbers[i];
    return sum;
}

// Faults of a row.
constexpr unsigned NO_FAULT = 0, NOT_A_NUMBER = 1, EMPTY = 2;

// The result of a draw. Where a logit is not a number, `token` is the first such and `log_prob` its
// logit.
struct DrawRecord {
    unsigned token;
    float log_prob, whole_log_prob, entropy;
    unsigned kept, fault;
};

// Shared memory of sample_draw.
struct DrawMemory {
    double total, moment, whole;
    Location block;
    float weights[SUM_BLOCK];
};

static_assert(sizeof(DrawMemory) == 1064, "the size in sampling.rs");

// The index of the token that the random number gives, within a row with these sums, for thread 0.
__device__ __forceinline__ uint64_t draw_index(DrawMemory &memory, const Row &row,
                                               const float *sums, float t, float max,
                                               double uniform) {
    const uint64_t blocks = (row.count + SUM_BLOCK - 1) / SUM_BLOCK;
    if (threadIdx.x == 0) memory.block = locate(sums, blocks, uniform * memory.total);
    __syncthreads();
    const uint64_t i = uint64_t(memory.block.place) * SUM_BLOCK + threadIdx.x;
    memory.weights[threadIdx.x] = i < row.count ? exponential(fmaf(row[i], t, -max)) : 0.0f;
    __syncthreads();
    if (threadIdx.x != 0) return 0;
    const double exact = sum_of(memory.weights, SUM_BLOCK);
    const double target = memory.block.rest / sums[memory.block.place] * exact;
    return i + locate(memory.weights, SUM_BLOCK, target).place;
}

// Draws each token. `sums` are those of the whole rows, `kept_sums` those of the kept sets.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_draw(const float *logits, const DrawSettings *draws, const Extremes *extremes,
                const float *sums, const unsigned *ids, const unsigned *counts,
                const float *kept_sums, DrawRecord *records, uint64_t vocabulary, unsigned parts) {
    SHARED_MEMORY(DrawMemory, shared);
    DrawMemory &memory = *shared;
    const DrawSettings &draw = draws[blockIdx.x];
    const Extremes all = extremes_of(extremes, blockIdx.x, parts);
    DrawRecord &record = records[blockIdx.x];
    const uint64_t blocks = (vocabulary + SUM_BLOCK - 1) / SUM_BLOCK;
    const float *whole_sums = sums + 2 * blocks * blockIdx.x, *own_sums = whole_sums;
    Row row = {logits + draw.row * vocabulary, nullptr, vocabulary};
    if (draw.cuts()) {
        own_sums = kept_sums + 2 * blocks * blockIdx.x;
        row.kept = ids + blockIdx.x * vocabulary;
        row.count = kept_before(counts, blockIdx.x, parts, parts);
    }
    const uint64_t own_blocks = (row.count + SUM_BLOCK - 1) / SUM_BLOCK;
    float *weights = reinterpret_cast<float *>(shared + 1);
    for (uint64_t block = threadIdx.x; block < own_blocks; block += THREADS)
        weights[block] = own_sums[block];
    __syncthreads();
    // Sums in double precision, each in the order of the blocks by a thread of its own.
    if (threadIdx.x == 0) memory.total = sum_of(weights, own_blocks);
    if (threadIdx.x == 32) memory.moment = sum_of(own_sums + blocks, own_blocks);
    if (threadIdx.x == 64) memory.whole = sum_of(whole_sums, blocks);
    __syncthreads();
    const float t = draw.inv_temperature;
    const RowStats own = {(draw.cuts() ? all.best : all.whole) * t,
                          static_cast<float>(memory.total)};
    const bool possible = draw.greedy ? all.best > -infinity()
                                      : own.sum > 0.0f && own.sum < infinity();
    if (all.fault != NO_ID || !possible) {
        if (threadIdx.x != 0) return;
        record = {};
        record.fault = all.fault != NO_ID ? NOT_A_NUMBER : EMPTY;
        record.token = all.fault != NO_ID ? all.fault : 0;
        record.log_prob = all.fault != NO_ID ? row.logits[all.fault] : 0.0f;
        return;
    }
    uint64_t token = all.id;
    if (!draw.greedy) {
        token = draw_index(memory, row, weights, t, own.max, uniform_of(draw));
        if (row.kept) token = row.kept[token];
    }
    if (threadIdx.x != 0) return;
    const RowStats whole = {all.whole * t, static_cast<float>(memory.whole)};
    const float logit = row.logits[token];
    record = {unsigned(token),
              log_prob_of(logit, t, own),
              log_prob_of(logit, t, whole),
              entropy_of_sums(own.sum, memory.moment),
              unsigned(row.count),
              NO_FAULT};
}
KERNEL(sample_draw)

// A sequence whose tokens are drawn step by step.
struct DrawnSequence {
    // Generated tokens; the number until which its suppressed ids are, and the most.
    unsigned generated, least, most;
    unsigned state;
};

// States of a sequence.
constexpr unsigned RUNNING = 0, STOPPED = 1, FULL = 2, FAULTY = 3;

// Adds each draw's token to its sequence, and prepares the draw of the next step. The id of a
// sequence that has ended stays.
extern "C" __global__ void sample_advance(const DrawRecord *records, DrawSettings *draws,
                                          DrawnSequence *sequences, const unsigned *stops,
                                          unsigned *next_ids, uint64_t count, uint64_t stop_count) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count || sequences[i].state != RUNNING) return;
    DrawnSequence &sequence = sequences[i];
    DrawSettings &draw = draws[i];
    if (records[i].fault != NO_FAULT) {
        sequence.state = FAULTY;
        return;
    }
    const unsigned token = records[i].token;
    next_ids[i] = token;
    sequence.generated++;
    if (sequence.generated >= sequence.most) sequence.state = FULL;
    for (uint64_t stop = 0; stop < stop_count; stop++)
        if (stops[stop] == token) sequence.state = STOPPED;
    if (sequence.generated >= sequence.least) draw.end_suppressed = draw.first_suppressed;
    // The second index of the key's entry is the token's.
    if (draw.keyed && ++draw.counter[2] == 0) draw.counter[3]++;
}
KERNEL(sample_advance)
