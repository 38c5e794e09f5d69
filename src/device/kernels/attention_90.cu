// What attention.cu computes, for heads of 128 numbers on GPUs of compute capability 9.0: one warpgroup copies keys
// and values, two others multiply 64 queries each with them. A tile's scores are on their way while the tile
// before is summed up (FlashAttention 3, arXiv 2407.08608).
#include "attention.cuh"
#include "hopper.cuh"

constexpr int CONSUMERS = 2; // warpgroups
constexpr int THREADS = GROUP * (1 + CONSUMERS);
constexpr int D = 128;
constexpr int QUERIES = 64 * CONSUMERS;
constexpr int KEYS = 128;
constexpr int BUFFERS = 3; // of keys, and of values
constexpr int CHUNKS = D / CHUNK;
constexpr int AT_ONCE = GROUP / CHUNKS; // rows that are fetched at once
constexpr int TILE = KEYS * CHUNKS; // in 16 bytes
constexpr int ROW = 128, ROWS = 8 * ROW; // bytes of a row of half a tile, and of eight

// Shared memory. Barriers are `full` when a tile is there, and `empty` when nobody reads it any more.
struct Shared {
    uint4 q[QUERIES * CHUNKS];
    uint4 k[BUFFERS][TILE];
    uint4 v[BUFFERS][TILE];
    Barrier q_full, k_full[BUFFERS], v_full[BUFFERS], k_empty[BUFFERS], v_empty[BUFFERS];
};

// Which tile is next, and where.
struct Turn {
    int buffer = 0, phase = 0;

    __device__ void advance() {
        buffer = (buffer + 1) % BUFFERS;
        phase ^= buffer == 0;
    }
};

// The tiles of this block's part of the keys.
struct Tiles {
    int all, first, end;

    __device__ Tiles(const Arguments& arguments) {
        all = (arguments.keys + KEYS - 1) / KEYS;
        first = (long long)all * blockIdx.z / gridDim.z;
        end = (long long)all * (blockIdx.z + 1) / gridDim.z;
    }
};

// The first key of a piece.
__device__ inline long long start_of(const Arguments& arguments, int piece) {
    return piece == 0 ? 0 : arguments.pieces[piece - 1].end;
}

// Where 16 bytes of a row are: a tile is two halves, of which each row has 128 bytes, shuffled.
__device__ inline int place(int rows, int row, int chunk) {
    return (chunk / 8 * rows + row) * 8 + (chunk % 8 ^ row % 8);
}

// One tile of keys, or of values, starts on its way to `tile`; `piece` is where the first row is, or before it.
template <typename Of>
__device__ void fetch(uint4* tile, const Arguments& arguments, int first, int& piece, Of of) {
    int chunk = threadIdx.x % CHUNKS, top = threadIdx.x / CHUNKS;
    long long row = gridDim.y * D, column = blockIdx.y * D + chunk * CHUNK;
    while (first >= arguments.pieces[piece].end) ++piece;
    tile += place(KEYS, top, chunk);
    if (first + KEYS <= arguments.pieces[piece].end) { // all of it in one piece
        const bf16* from = of(arguments.pieces[piece]) + (first + top - start_of(arguments, piece)) * row + column;
#pragma unroll
        for (int i = 0; i < KEYS / AT_ONCE; ++i) copy_later(tile + i * AT_ONCE * 8, from + i * AT_ONCE * row, true);
        return;
    }
    for (int i = 0, part = piece; i < KEYS / AT_ONCE; ++i) {
        int key = first + top + i * AT_ONCE;
        bool is_there = key < arguments.keys;
        while (is_there && key >= arguments.pieces[part].end) ++part;
        long long token = is_there ? key - start_of(arguments, part) : 0;
        copy_later(tile + i * AT_ONCE * 8, of(arguments.pieces[part]) + token * row + column, is_there);
    }
}

__device__ void fetch_queries(uint4* tile, const Arguments& arguments) {
    int chunk = threadIdx.x % CHUNKS;
    for (int row = threadIdx.x / CHUNKS; row < QUERIES; row += AT_ONCE) {
        int query = blockIdx.x * QUERIES + row;
        bool is_there = query < arguments.queries;
        const bf16* from = arguments.q + (is_there ? query * arguments.q_row : 0) + blockIdx.y * D + chunk * CHUNK;
        copy_later(tile + place(QUERIES, row, chunk), from, is_there);
    }
}

__device__ void produce(Shared& shared, const Arguments& arguments) {
    auto keys = [](const Piece& piece) { return piece.k; };
    auto values = [](const Piece& piece) { return piece.v; };
    fetch_queries(shared.q, arguments);
    arrive_with_copies(shared.q_full);
    Turn turn;
    Tiles tiles(arguments);
    int k_piece = 0, v_piece = 0;
    for (int tile = tiles.first; tile < tiles.end; ++tile, turn.advance()) {
        wait_for(shared.k_empty[turn.buffer], turn.phase ^ 1);
        fetch(shared.k[turn.buffer], arguments, tile * KEYS, k_piece, keys);
        arrive_with_copies(shared.k_full[turn.buffer]);
        wait_for(shared.v_empty[turn.buffer], turn.phase ^ 1);
        fetch(shared.v[turn.buffer], arguments, tile * KEYS, v_piece, values);
        arrive_with_copies(shared.v_full[turn.buffer]);
    }
}

// The number of this warpgroup among those that multiply.
__device__ inline int consumer() { return threadIdx.x / GROUP - 1; }

// scores = q kT for 64 queries and a tile of keys, later.
__device__ void multiply_keys(float (&scores)[KEYS / 8][4], const uint4* q, const uint4* k) {
    begin_products();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
        const uint4 *q_half = q + i / 4 * QUERIES * 8, *k_half = k + i / 4 * KEYS * 8;
        int column = i % 4 * 2; // in 16 bytes
        multiply(Bf16(), scores, shuffled(q_half + column, 0, ROWS), shuffled(k_half + column, 0, ROWS), i > 0);
    }
    close_products();
}

// out += powers v, later.
__device__ void multiply_values(float (&out)[D / 8][4], const unsigned (&powers)[KEYS / 16][4], const uint4* v) {
    begin_products();
#pragma unroll
    for (int i = 0; i < KEYS / 16; ++i) multiply(out, powers[i], shuffled(v + i * 16 * 8, KEYS * ROW, ROWS));
    close_products();
}

// The last tile: adds the last key's bias, and takes keys out that are none.
__device__ inline void finish_scores(float (&scores)[KEYS / 8][4], const Arguments& arguments, int first) {
    int left = arguments.keys - first, column = threadIdx.x % 4 * 2;
    float last_bias = arguments.last_bias / arguments.scale;
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            int key = 8 * n + column + e % 2;
            if (key == left - 1) scores[n][e] += last_bias;
            if (key >= left) scores[n][e] = -INFINITY;
        }
}

// Largest score and sum of powers of two so far, of the two rows that a lane has a part in.
struct Softmax {
    float largest[2] = {-INFINITY, -INFINITY}; // scaled
    float sum[2] = {0, 0};                     // of this lane's columns only

    // Turns scores into powers relative to the largest so far, and says how much sums shrink.
    __device__ void advance(float (&scores)[KEYS / 8][4], float scale, float (&shrink)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            most = fmaxf(most, exchange(most, 1));
            most = fmaxf(most, exchange(most, 2)) * scale;
            most = fmaxf(most, largest[half]);
            shrink[half] = power_of_two(largest[half] - most);
            largest[half] = most;
            sum[half] *= shrink[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    scores[n][e] = power_of_two(fmaf(scores[n][e], scale, -most));
                    sum[half] += scores[n][e];
                }
        }
    }

    __device__ float total(int half) const {
        float all = sum[half] + exchange(sum[half], 1);
        return all + exchange(all, 2);
    }
};

// In the form that a product takes them.
__device__ inline void pack_powers(unsigned (&powers)[KEYS / 16][4], const float (&scores)[KEYS / 8][4]) {
#pragma unroll
    for (int i = 0; i < KEYS / 16; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float* pair = scores[2 * i + j / 2] + j % 2 * 2;
            powers[i][j] = pack(pair[0], pair[1]);
        }
}

// The result, or that of a part of the keys with the logarithm of its sum.
__device__ void store(const float (&out)[D / 8][4], const Softmax& softmax, const Arguments& arguments) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - GROUP / 32;
    long long rows = (long long)arguments.queries * gridDim.y;
    for (int half = 0; half < 2; ++half) {
        float total = softmax.total(half), share = 1 / total;
        int query = blockIdx.x * QUERIES + warp * 16 + half * 8 + lane / 4;
        if (query >= arguments.queries) continue;
        long long row = (long long)query * gridDim.y + blockIdx.y, part = blockIdx.z * rows + row;
        for (int n = 0; n < D / 8; ++n) {
            int column = 8 * n + lane % 4 * 2;
            float first = out[n][2 * half] * share, second = out[n][2 * half + 1] * share;
            if (!arguments.parts)
                *reinterpret_cast<unsigned*>(arguments.out + row * D + column) = pack(first, second);
            else
                *reinterpret_cast<float2*>(arguments.parts + part * D + column) = {first, second};
        }
        if (arguments.parts && lane % 4 == 0)
            arguments.parts[gridDim.z * rows * D + part] = softmax.largest[half] + logarithm(total);
    }
}

// A warp has done with a tile.
__device__ inline void release(Barrier& empty) {
    if (threadIdx.x % 32 == 0) arrive(empty);
}

__device__ inline void expect(Barrier& full, int phase) {
    wait_for(full, phase);
    see_copies();
}

__device__ void consume(Shared& shared, const Arguments& arguments) {
    const uint4* q = shared.q + consumer() * 64 * 8;
    float out[D / 8][4] = {}, scores[KEYS / 8][4], shrink[2];
    unsigned powers[KEYS / 16][4];
    Softmax softmax;
    Turn now, before;
    Tiles tiles(arguments);
    expect(shared.q_full, 0);
    for (int tile = tiles.first; tile < tiles.end; ++tile, now.advance()) {
        expect(shared.k_full[now.buffer], now.phase);
        multiply_keys(scores, q, shared.k[now.buffer]);
        if (tile > tiles.first) {
            expect(shared.v_full[before.buffer], before.phase);
            multiply_values(out, powers, shared.v[before.buffer]);
            wait_for_products<1>();
        } else {
            wait_for_products<0>();
        }
        computed(scores);
        release(shared.k_empty[now.buffer]);
        if (tile == tiles.all - 1) finish_scores(scores, arguments, tile * KEYS);
        softmax.advance(scores, arguments.scale, shrink);
        wait_for_products<0>();
        computed(out);
        if (tile > tiles.first) {
            release(shared.v_empty[before.buffer]);
            before.advance();
        }
        pack_powers(powers, scores);
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            for (int e = 0; e < 4; ++e) out[n][e] *= shrink[e / 2];
    }
    expect(shared.v_full[before.buffer], before.phase);
    multiply_values(out, powers, shared.v[before.buffer]);
    wait_for_products<0>();
    computed(out);
    store(out, softmax, arguments);
}

// A block of threads for each QUERIES queries (x) of each head (y), over a part of the keys (z).
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_90(const __grid_constant__ Arguments arguments) {
    auto& shared = shared_memory<Shared>();
    if (threadIdx.x == 0) {
        begin(shared.q_full, GROUP);
        for (int i = 0; i < BUFFERS; ++i) {
            begin(shared.k_full[i], GROUP), begin(shared.v_full[i], GROUP);
            begin(shared.k_empty[i], CONSUMERS * GROUP / 32), begin(shared.v_empty[i], CONSUMERS * GROUP / 32);
        }
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        keep_registers<40>();
        produce(shared, arguments);
    } else {
        take_registers<232>();
        consume(shared, arguments);
    }
}

// What parts of the keys have come to, in one row of one list of them.
struct Parts {
    const float* outs;
    const float* sums;
    int count;
    long long rows;

    __device__ Parts(const float* parts, int count, long long rows, long long row)
        : outs(parts + row * D), sums(parts + count * rows * D + row), count(count), rows(rows) {}

    __device__ float most(float before) const {
        for (int part = 0; part < count; ++part) before = fmaxf(before, sums[part * rows]);
        return before;
    }

    __device__ void add(float4& out, float& total, float most, int column) const {
        for (int part = 0; part < count; ++part) {
            float share = power_of_two(sums[part * rows] - most);
            float4 x = *reinterpret_cast<const float4*>(outs + part * rows * D + column);
            total += share;
            out = {out.x + share * x.x, out.y + share * x.y, out.z + share * x.z, out.w + share * x.w};
        }
    }
};

// Joins what parts of the keys, and of earlier ones, have come to: a warp for each row, of which `heads` are a query's.
extern "C" __global__ void __launch_bounds__(GROUP) attention_90_join(
    const __grid_constant__ Arguments arguments) {
    long long rows = (long long)arguments.queries * arguments.heads;
    long long row = (long long)blockIdx.x * (GROUP / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    Parts earlier(arguments.earlier, arguments.earlier_parts, rows, row);
    Parts parts(arguments.parts, arguments.key_parts, rows, row);
    float most = parts.most(earlier.most(-INFINITY)), total = 0;
    float4 out = {0, 0, 0, 0};
    int column = threadIdx.x % 32 * 4;
    earlier.add(out, total, most, column);
    parts.add(out, total, most, column);
    *reinterpret_cast<uint2*>(arguments.out + row * D + column) =
        {pack(out.x / total, out.y / total), pack(out.z / total, out.w / total)};
}
