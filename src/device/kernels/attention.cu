// Attention without a matrix of scores: a block of threads takes some queries of a head and goes over all keys,
// a tile at a time, while the next tile is on its way to shared memory (FlashAttention 2, arXiv 2307.08691).
// Numbers are bf16, scores and sums f32. Keys come in pieces, which are read where they lie.
#include "attention.cuh"
#include "warp.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int QUERIES = 16 * WARPS;
constexpr int KEYS = 64;

// Where 16 bytes of a row are in a tile: shuffled, so that eight rows' same chunks lie in different banks.
template <int D>
__device__ inline int place(int row, int chunk) {
    constexpr int CHUNKS = D / CHUNK;
    return row * CHUNKS + (chunk ^ (row % (CHUNKS < 8 ? CHUNKS : 8)));
}

// One tile of keys, or of values, starts on its way to `tile`.
template <int D, typename Of>
__device__ void fetch(uint4* tile, const Arguments& arguments, int first, Of of) {
    constexpr int CHUNKS = D / CHUNK;
    int piece = 0;
    for (int i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS, key = first + row;
        bool is_there = key < arguments.keys;
        while (is_there && key >= arguments.pieces[piece].end) ++piece;
        long long before = piece == 0 ? 0 : arguments.pieces[piece - 1].end;
        long long token = is_there ? key - before : 0;
        const bf16* from = of(arguments.pieces[piece]) + (token * gridDim.y + blockIdx.y) * D + chunk * CHUNK;
        copy_later(tile + place<D>(row, chunk), from, is_there);
    }
}

// The queries of this warp, in the form that a product takes them, by way of shared memory.
template <int D>
__device__ void fetch_queries(unsigned (&q)[D / 16][4], uint4* tile, const Arguments& arguments) {
    constexpr int CHUNKS = D / CHUNK;
    for (int i = threadIdx.x; i < QUERIES * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS, query = blockIdx.x * QUERIES + row;
        bool is_there = query < arguments.queries;
        const bf16* from = arguments.q + (is_there ? query * arguments.q_row : 0) + blockIdx.y * D + chunk * CHUNK;
        copy_later(tile + place<D>(row, chunk), from, is_there);
    }
    close_group();
    wait_for_groups<0>();
    __syncthreads();
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
    for (int k = 0; k < D / 16; ++k) load_matrices(q[k], tile + place<D>(row, 2 * k + lane / 16));
    __syncthreads();
}

// scores = q kT for 16 queries and a tile of keys.
template <int D>
__device__ void multiply_keys(float (&scores)[KEYS / 8][4], const unsigned (&q)[D / 16][4], const uint4* tile) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n)
        for (int e = 0; e < 4; ++e) scores[n][e] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) {
            unsigned b[4];
            int row = 16 * n + lane / 16 * 8 + lane % 8;
            load_matrices(b, tile + place<D>(row, 2 * k + lane / 8 % 2));
            multiply_add(scores[2 * n], q[k], b[0], b[1]);
            multiply_add(scores[2 * n + 1], q[k], b[2], b[3]);
        }
}

// Scales, adds the last key's bias, and takes keys out that are none.
__device__ inline void finish_scores(float (&scores)[KEYS / 8][4], const Arguments& arguments, int first) {
    int left = arguments.keys - first, column = threadIdx.x % 4 * 2;
    bool is_last = left <= KEYS;
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            float& score = scores[n][e];
            score *= arguments.scale;
            int key = 8 * n + column + e % 2;
            if (is_last && key == left - 1) score += arguments.last_bias;
            if (is_last && key >= left) score = -INFINITY;
        }
}

// Largest score and sum of powers of two so far, of the two rows that a lane has a part in.
struct Softmax {
    float largest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0, 0}; // of this lane's columns only

    // Turns scores into powers relative to the largest so far, and says how much sums shrink.
    __device__ void advance(float (&scores)[KEYS / 8][4], float (&shrink)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float before = largest[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
                largest[half] = fmaxf(largest[half], fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            largest[half] = fmaxf(largest[half], exchange(largest[half], 1));
            largest[half] = fmaxf(largest[half], exchange(largest[half], 2));
            shrink[half] = power_of_two(before - largest[half]);
            sum[half] *= shrink[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    scores[n][e] = power_of_two(scores[n][e] - largest[half]);
                    sum[half] += scores[n][e];
                }
        }
    }

    __device__ float total(int half) const {
        float all = sum[half] + exchange(sum[half], 1);
        return all + exchange(all, 2);
    }
};

// out += powers v.
template <int D>
__device__ void multiply_values(float (&out)[D / 8][4], const float (&powers)[KEYS / 8][4], const uint4* tile) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
        unsigned a[4] = {
            pack(powers[2 * k][0], powers[2 * k][1]), pack(powers[2 * k][2], powers[2 * k][3]),
            pack(powers[2 * k + 1][0], powers[2 * k + 1][1]), pack(powers[2 * k + 1][2], powers[2 * k + 1][3]),
        };
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            unsigned b[4];
            load_transposed(b, tile + place<D>(16 * k + lane % 16, 2 * n + lane / 16));
            multiply_add(out[2 * n], a, b[0], b[1]);
            multiply_add(out[2 * n + 1], a, b[2], b[3]);
        }
    }
}

template <int D>
__device__ void store(const float (&out)[D / 8][4], const Softmax& softmax, const Arguments& arguments) {
    int lane = threadIdx.x % 32;
    for (int half = 0; half < 2; ++half) {
        float total = softmax.total(half);
        int query = blockIdx.x * QUERIES + threadIdx.x / 32 * 16 + half * 8 + lane / 4;
        if (query >= arguments.queries) continue;
        bf16* row = arguments.out + ((long long)query * gridDim.y + blockIdx.y) * D + lane % 4 * 2;
        for (int n = 0; n < D / 8; ++n)
            *reinterpret_cast<unsigned*>(row + 8 * n) =
                pack(out[n][2 * half] / total, out[n][2 * half + 1] / total);
    }
}

// A block of threads for each QUERIES queries (x) of each head (y), with 4 tiles of shared memory.
template <int D>
__device__ void attend(const Arguments& arguments) {
    constexpr int TILE = KEYS * D / CHUNK;
    SHARED(uint4, shared);
    uint4 *k_tiles = shared, *v_tiles = shared + 2 * TILE;
    auto keys = [](const Piece& piece) { return piece.k; };
    auto values = [](const Piece& piece) { return piece.v; };
    unsigned q[D / 16][4];
    fetch_queries<D>(q, shared, arguments);
    fetch<D>(k_tiles, arguments, 0, keys);
    close_group();
    fetch<D>(v_tiles, arguments, 0, values);
    close_group();
    float out[D / 8][4] = {}, scores[KEYS / 8][4], shrink[2];
    Softmax softmax;
    for (int first = 0, now = 0; first < arguments.keys; first += KEYS, now = TILE - now) {
        bool is_last = first + KEYS >= arguments.keys;
        wait_for_groups<1>(); // these keys are there, these values perhaps not
        __syncthreads();
        if (!is_last) fetch<D>(k_tiles + TILE - now, arguments, first + KEYS, keys);
        close_group();
        multiply_keys<D>(scores, q, k_tiles + now);
        finish_scores(scores, arguments, first);
        softmax.advance(scores, shrink);
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            for (int e = 0; e < 4; ++e) out[n][e] *= shrink[e / 2];
        wait_for_groups<1>(); // these values are there, the next keys perhaps not
        __syncthreads();
        if (!is_last) fetch<D>(v_tiles + TILE - now, arguments, first + KEYS, values);
        close_group();
        multiply_values<D>(out, scores, v_tiles + now);
    }
    store<D>(out, softmax, arguments);
}

#define ATTENTION(D)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_##D(                               \
        const __grid_constant__ Arguments arguments) {                                                 \
        attend<D>(arguments);                                                                          \
    }

ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
