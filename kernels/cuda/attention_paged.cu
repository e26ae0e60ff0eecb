// Attention of new tokens over a block-paged cache of keys and values.
//
// A layer's keys are `[block][kv head][16 tokens][head_dim]`, and so are its values. A row is a
// pair of a new token and a query head of one key head's group, in this order; a tile is up to ROWS
// consecutive rows of a sequence. Keys are split at multiples of 128 positions. A split's scores
// have a softmax of their own, and splits are joined in ascending order: within the block, or by
// `attention_paged_join`, with the same arithmetic. So a token's result has the same bits whatever
// the tile, the batch, and the tokens that are new together with it.
//
// With a cache in bfloat16, queries are rounded to bfloat16 too; weights are not.
#include "attention.cuh"

namespace paged {

using attention::NO_SCORE;
using attention::THREADS;

constexpr unsigned BLOCK_TOKENS = 16, SPLIT = THREADS;
// Columns that are in shared memory at a time, and the distance of their rows, with which reads
// meet no bank twice.
constexpr unsigned CHUNK = 64, STRIDE = CHUNK + 4, QUADS = CHUNK / 4;
// Threads that add products of the same columns, for different keys.
constexpr unsigned SUBSETS = THREADS / QUADS;
// Stands for a tile's splits all together.
constexpr unsigned WHOLE = ~0u;

__device__ __forceinline__ float4 cached(const float *from) {
    return attention::load_four(from);
}

__device__ __forceinline__ float4 cached(const uint16_t *from) {
    const ushort4 bits = *reinterpret_cast<const ushort4 *>(from);
    const auto wide = [](unsigned half) { return __uint_as_float(half << 16); };
    return make_float4(wide(bits.x), wide(bits.y), wide(bits.z), wide(bits.w));
}

__device__ __forceinline__ void cache(float *to, float4 value) {
    attention::store_four(to, value);
}

__device__ __forceinline__ void cache(uint16_t *to, float4 v) {
    *reinterpret_cast<ushort4 *>(to) = make_ushort4(bfloat16_bits(v.x), bfloat16_bits(v.y),
                                                    bfloat16_bits(v.z), bfloat16_bits(v.w));
}

// A number as the cache would hold it.
__device__ __forceinline__ float rounded(float value, const float *) {
    return value;
}

__device__ __forceinline__ float rounded(float value, const uint16_t *) {
    return __uint_as_float(unsigned(bfloat16_bits(value)) << 16);
}

// Sizes of a layer.
struct Heads {
    unsigned query_heads, kv_heads, head_dim;

    __device__ unsigned columns() const { return (query_heads + 2 * kv_heads) * head_dim; }
    __device__ unsigned group() const { return query_heads / kv_heads; }
};

// A sequence of the step: its first row of `qkv`, new tokens, earlier tokens, and its first entry
// of the table of blocks.
struct Sequence {
    uint64_t token;
    unsigned count, past;
    const unsigned *blocks;
};

__device__ __forceinline__ Sequence sequence_of(const unsigned *sequences, unsigned index,
                                                const unsigned *table) {
    const unsigned *s = sequences + 4 * uint64_t(index);
    return {s[0], s[1], s[2], table + s[3]};
}

// Rows `first` to `first + rows - 1` of a sequence.
struct Tile {
    Sequence sequence;
    unsigned first, rows, group;

    __device__ unsigned position(unsigned row) const {
        return sequence.past + (first + row) / group;
    }
    // Behind the last position that a row sees.
    __device__ unsigned end() const { return position(rows - 1) + 1; }
    // The first split that has keys which a row sees.
    __device__ unsigned first_split(unsigned window) const {
        return attention::first_key(position(0), window) / SPLIT;
    }
    // Offset of a row's head within `[tokens, width]`, for heads from column 0 on.
    __device__ uint64_t offset(unsigned row, unsigned width, unsigned kv_head,
                               unsigned head_dim) const {
        const unsigned head = kv_head * group + (first + row) % group;
        return (sequence.token + (first + row) / group) * width + head * head_dim;
    }
};

__device__ __forceinline__ Tile tile_of(const unsigned *sequences, const unsigned *table,
                                        unsigned index, unsigned first, unsigned most,
                                        const Heads &heads) {
    const Sequence sequence = sequence_of(sequences, index, table);
    const unsigned group = heads.group();
    return {sequence, first, min_of(most, sequence.count * group - first), group};
}

// Largest score and sum of weights of a row's keys.
struct Softmax {
    float largest, sum;
};

// Factors with which earlier and further keys enter a joined softmax.
struct Factors {
    float kept, added;
};

// Adds the keys of `part` to `softmax`.
__device__ __forceinline__ Factors join(Softmax &softmax, Softmax part) {
    const float most = attention::larger(softmax.largest, part.largest);
    const Factors factors = {exponential(softmax.largest - most),
                             exponential(part.largest - most)};
    softmax = {most, fmaf(softmax.sum, factors.kept, part.sum * factors.added)};
    return factors;
}

__device__ __forceinline__ float joined(float before, float part, Factors factors) {
    return fmaf(before, factors.kept, part * factors.added);
}

// Shared memory of a block.
template <unsigned ROWS> struct Shared {
    float *tile;        // [SPLIT][STRIDE], or sums [SUBSETS][ROWS][CHUNK]
    float *weights;     // [ROWS][SPLIT]
    float *queries;     // [ROWS][head_dim]
    float *mixed;       // [ROWS][head_dim]
    Softmax *parts;     // [ROWS]
    Softmax *softmaxes; // [ROWS]
    unsigned *blocks;   // [SPLIT / BLOCK_TOKENS]

    __device__ Shared(float *memory, unsigned head_dim) {
        tile = memory;
        weights = tile + SPLIT * STRIDE;
        queries = weights + ROWS * SPLIT;
        mixed = queries + ROWS * head_dim;
        parts = reinterpret_cast<Softmax *>(mixed + ROWS * head_dim);
        softmaxes = parts + ROWS;
        blocks = reinterpret_cast<unsigned *>(softmaxes + ROWS);
    }
};

// Loads the columns from `column` on of the first `count` keys or values of a split.
template <class T>
__device__ __forceinline__ void load_chunk(float *tile, const T *store, const unsigned *blocks,
                                           unsigned count, unsigned column, unsigned kv_head,
                                           const Heads &heads) {
    const unsigned quads = min_of(CHUNK, heads.head_dim - column) / 4;
    const unsigned quad = threadIdx.x % QUADS;
    if (quad >= quads) return;
#pragma unroll 8
    for (unsigned key = threadIdx.x / QUADS; key < count; key += SUBSETS) {
        const uint64_t head = uint64_t(blocks[key / BLOCK_TOKENS]) * heads.kv_heads + kv_head;
        const uint64_t at = (head * BLOCK_TOKENS + key % BLOCK_TOKENS) * heads.head_dim + column;
        attention::store_four(tile + key * STRIDE + 4 * quad, cached(store + at + 4 * quad));
    }
}

// Scores of a split's keys, one for each thread and row, and the rows' softmax over them.
template <unsigned ROWS, class T>
__device__ __forceinline__ void weigh(const Shared<ROWS> &shared, const Tile &tile, const T *keys,
                                      unsigned start, unsigned count, unsigned kv_head,
                                      const Heads &heads, unsigned window, float scale) {
    float scores[ROWS];
    for (unsigned r = 0; r < ROWS; r++) scores[r] = 0.0f;
    for (unsigned column = 0; column < heads.head_dim; column += CHUNK) {
        __syncthreads();
        load_chunk(shared.tile, keys, shared.blocks, count, column, kv_head, heads);
        __syncthreads();
        const float *key = shared.tile + threadIdx.x * STRIDE, *query = shared.queries + column;
        for (unsigned d = 0; d < min_of(CHUNK, heads.head_dim - column); d += 4) {
            const float4 own = attention::load_four(key + d);
            for (unsigned r = 0; r < ROWS; r++)
                scores[r] = attention::dot_four(
                    attention::load_four(query + r * heads.head_dim + d), own, scores[r]);
        }
    }
    for (unsigned r = 0; r < ROWS; r++)
        shared.weights[r * SPLIT + threadIdx.x] = scores[r] * scale;
    __syncthreads();
    for (unsigned r = threadIdx.x / 32; r < tile.rows; r += THREADS / 32) {
        const unsigned lane = threadIdx.x % 32, query = tile.position(r);
        float *row = shared.weights + r * SPLIT;
        float most = NO_SCORE, sum = 0.0f;
        for (unsigned i = lane; i < SPLIT; i += 32)
            if (attention::sees(query, start + i, window)) most = attention::larger(most, row[i]);
        for (unsigned distance = 16; distance > 0; distance /= 2)
            most = attention::larger(most, __shfl_xor_sync(~0u, most, distance, 32));
        for (unsigned i = lane; i < SPLIT; i += 32) {
            const bool seen = attention::sees(query, start + i, window);
            row[i] = seen ? exponential(row[i] - most) : 0.0f;
            sum += row[i];
        }
        for (unsigned distance = 16; distance > 0; distance /= 2)
            sum += __shfl_xor_sync(~0u, sum, distance, 32);
        if (lane == 0) shared.parts[r] = {most, sum};
    }
}

// Values of the columns from `column` on, weighted and summed over the split's keys: element
// `[row][column]` for thread column + 64 (row mod 2) and each second row.
template <unsigned ROWS>
__device__ __forceinline__ void mix(const Shared<ROWS> &shared, unsigned count,
                                    float (&sums)[ROWS / 2]) {
    const unsigned quad = threadIdx.x % QUADS, subset = threadIdx.x / QUADS;
    float4 own[ROWS];
    for (unsigned r = 0; r < ROWS; r++) own[r] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (unsigned key = subset; key < count; key += SUBSETS) {
        const float4 value = attention::load_four(shared.tile + key * STRIDE + 4 * quad);
        for (unsigned r = 0; r < ROWS; r++)
            attention::add_product(own[r], shared.weights[r * SPLIT + key], value);
    }
    __syncthreads();
    for (unsigned r = 0; r < ROWS; r++)
        attention::store_four(shared.tile + (subset * ROWS + r) * CHUNK + 4 * quad, own[r]);
    __syncthreads();
    for (unsigned i = 0; i < ROWS / 2; i++) {
        const float *part = shared.tile + i * THREADS + threadIdx.x;
        sums[i] = part[0];
        for (unsigned s = 1; s < SUBSETS; s++) sums[i] += part[s * ROWS * CHUNK];
    }
}

// Results of blocks with one split each.
struct Parts {
    float *mixed;       // [item][kv head][ROWS][head_dim]
    Softmax *softmaxes; // [item][kv head][ROWS]
};

// Block (x, y): item x, key head y. An item has a sequence, a tile's first row, and a split.
template <unsigned ROWS, class T>
__device__ __forceinline__ void attend(const float *qkv, const T *keys, const T *values,
                                       const unsigned *items, const unsigned *sequences,
                                       const unsigned *table, const Heads &heads, unsigned window,
                                       float scale, float *out, Parts parts) {
    SHARED_MEMORY(float, memory);
    const Shared<ROWS> shared(memory, heads.head_dim);
    const unsigned *item = items + 3 * uint64_t(blockIdx.x), only = item[2], width = heads.head_dim;
    const Tile tile = tile_of(sequences, table, item[0], item[1], ROWS, heads);
    unsigned split = tile.first_split(window), behind = (tile.end() - 1) / SPLIT + 1;
    if (only != WHOLE) {
        if (only < split) return;
        split = only;
        behind = only + 1;
    }
    for (unsigned i = threadIdx.x; i < ROWS * width; i += THREADS) {
        const unsigned row = i / width;
        const uint64_t at = tile.offset(row, heads.columns(), blockIdx.y, width) + i % width;
        shared.queries[i] = row < tile.rows ? rounded(qkv[at], keys) : 0.0f;
    }
    if (threadIdx.x < ROWS) shared.softmaxes[threadIdx.x] = {NO_SCORE, 0.0f};
    const uint64_t part = (uint64_t(blockIdx.x) * heads.kv_heads + blockIdx.y) * ROWS;
    for (; split < behind; split++) {
        const unsigned start = split * SPLIT, count = min_of(SPLIT, tile.end() - start);
        if (threadIdx.x * BLOCK_TOKENS < count)
            shared.blocks[threadIdx.x] = tile.sequence.blocks[start / BLOCK_TOKENS + threadIdx.x];
        weigh(shared, tile, keys, start, count, blockIdx.y, heads, window, scale);
        for (unsigned column = 0; column < width; column += CHUNK) {
            __syncthreads();
            load_chunk(shared.tile, values, shared.blocks, count, column, blockIdx.y, heads);
            __syncthreads();
            float sums[ROWS / 2];
            mix(shared, count, sums);
            const unsigned at = column + threadIdx.x % CHUNK;
            for (unsigned i = 0; i < ROWS / 2; i++) {
                const unsigned row = 2 * i + threadIdx.x / CHUNK;
                if (row >= tile.rows || at >= width) continue;
                if (only != WHOLE) {
                    parts.mixed[(part + row) * width + at] = sums[i];
                    continue;
                }
                Softmax softmax = shared.softmaxes[row];
                const float before = softmax.sum == 0.0f ? 0.0f : shared.mixed[row * width + at];
                const Factors factors = join(softmax, shared.parts[row]);
                shared.mixed[row * width + at] = joined(before, sums[i], factors);
            }
        }
        __syncthreads();
        if (threadIdx.x < tile.rows) {
            const Softmax own = shared.parts[threadIdx.x];
            if (only == WHOLE) join(shared.softmaxes[threadIdx.x], own);
            else parts.softmaxes[part + threadIdx.x] = own;
        }
    }
    if (only != WHOLE) return;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < tile.rows * width; i += THREADS) {
        const unsigned row = i / width;
        const uint64_t at = tile.offset(row, heads.query_heads * width, blockIdx.y, width);
        out[at + i % width] = shared.mixed[i] / shared.softmaxes[row].sum;
    }
}

// Writes the keys and values of the new tokens to their slots, four columns for each thread.
template <class T>
__device__ __forceinline__ void write(const float *qkv, T *keys, T *values, const unsigned *slots,
                                      uint64_t tokens, const Heads &heads) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const unsigned quads = heads.head_dim / 4;
    if (i >= tokens * heads.kv_heads * quads) return;
    const uint64_t token = i / quads / heads.kv_heads;
    const unsigned head = i / quads % heads.kv_heads, column = i % quads * 4;
    const unsigned block = slots[token] / BLOCK_TOKENS, place = slots[token] % BLOCK_TOKENS;
    const uint64_t to =
        ((uint64_t(block) * heads.kv_heads + head) * BLOCK_TOKENS + place) * heads.head_dim + column;
    const float *row = qkv + token * heads.columns();
    const unsigned from = (heads.query_heads + head) * heads.head_dim + column;
    cache(keys + to, attention::load_four(row + from));
    cache(values + to, attention::load_four(row + from + heads.kv_heads * heads.head_dim));
}

} // namespace paged

#define PAGED_PARAMETERS(TYPE)                                                                     \
    (const float *qkv, const TYPE *keys, const TYPE *values, const unsigned *items,                \
     const unsigned *sequences, const unsigned *table, unsigned query_heads, unsigned kv_heads,    \
     unsigned head_dim, unsigned window, float scale, float *out, float *mixed,                    \
     float *softmaxes)

#define PAGED_CALL(ROWS, TYPE)                                                                     \
    paged::attend<ROWS, TYPE>(qkv, keys, values, items, sequences, table,                          \
                              {query_heads, kv_heads, head_dim}, window, scale, out,               \
                              {mixed, reinterpret_cast<paged::Softmax *>(softmaxes)})

// Rows of a tile.
#define PAGED_KERNELS(ROWS)                                                                        \
    extern "C" __global__ void __launch_bounds__(128, 4)                                           \
        attention_paged_##ROWS PAGED_PARAMETERS(float) {                                           \
        PAGED_CALL(ROWS, float);                                                                   \
    }                                                                                              \
    KERNEL(attention_paged_##ROWS)                                                                 \
    extern "C" __global__ void __launch_bounds__(128, 4)                                           \
        attention_paged_bfloat16_##ROWS PAGED_PARAMETERS(uint16_t) {                               \
        PAGED_CALL(ROWS, uint16_t);                                                                \
    }                                                                                              \
    KERNEL(attention_paged_bfloat16_##ROWS)

PAGED_KERNELS(4)
PAGED_KERNELS(8)
PAGED_KERNELS(16)

// Joins the splits of tiles of `most` rows. Block (x, y): tile x, key head y; a tile has a sequence,
// its first row, and the item of its first split.
extern "C" __global__ void attention_paged_join(const float *mixed, const float *softmaxes,
                                                const unsigned *tiles, const unsigned *sequences,
                                                unsigned most, unsigned query_heads,
                                                unsigned kv_heads, unsigned head_dim,
                                                unsigned window, float *out) {
    using namespace paged;
    const Heads heads = {query_heads, kv_heads, head_dim};
    const unsigned *own = tiles + 3 * uint64_t(blockIdx.x);
    const Tile tile = tile_of(sequences, nullptr, own[0], own[1], most, heads);
    const unsigned first = tile.first_split(window), behind = (tile.end() - 1) / SPLIT + 1;
    const Softmax *stored = reinterpret_cast<const Softmax *>(softmaxes);
    for (unsigned i = threadIdx.x; i < tile.rows * head_dim; i += blockDim.x) {
        const unsigned row = i / head_dim, column = i % head_dim;
        Softmax softmax = {NO_SCORE, 0.0f};
        float sum = 0.0f;
        for (unsigned split = first; split < behind; split++) {
            const uint64_t item = uint64_t(own[2]) + split;
            const uint64_t part = (item * kv_heads + blockIdx.y) * most + row;
            const Factors factors = join(softmax, stored[part]);
            sum = joined(sum, mixed[part * head_dim + column], factors);
        }
        const uint64_t at = tile.offset(row, query_heads * head_dim, blockIdx.y, head_dim);
        out[at + column] = sum / softmax.sum;
    }
}
KERNEL(attention_paged_join)

extern "C" __global__ void attention_paged_write(const float *qkv, float *keys, float *values,
                                                 const unsigned *slots, uint64_t tokens,
                                                 unsigned query_heads, unsigned kv_heads,
                                                 unsigned head_dim) {
    paged::write(qkv, keys, values, slots, tokens, {query_heads, kv_heads, head_dim});
}
KERNEL(attention_paged_write)

extern "C" __global__ void attention_paged_write_bfloat16(const float *qkv, uint16_t *keys,
                                                          uint16_t *values, const unsigned *slots,
                                                          uint64_t tokens, unsigned query_heads,
                                                          unsigned kv_heads, unsigned head_dim) {
    paged::write(qkv, keys, values, slots, tokens, {query_heads, kv_heads, head_dim});
}
KERNEL(attention_paged_write_bfloat16)

// Copies blocks of `quads` times 16 bytes, `pairs` of a source and a destination, 16 bytes of keys
// and of values for each thread.
extern "C" __global__ void attention_paged_copy(uint4 *keys, uint4 *values, const unsigned *pairs,
                                                uint64_t count, uint64_t quads) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count * quads) return;
    const unsigned *pair = pairs + i / quads * 2;
    const uint64_t from = pair[0] * quads + i % quads, to = pair[1] * quads + i % quads;
    keys[to] = keys[from];
    values[to] = values[from];
}
KERNEL(attention_paged_copy)
