// What is done to each row of an activation between products: read once, written once, by a warp, or by a part of
// one where a row is narrow. Numbers are bf16, arithmetic is f32.
#include "warp.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int CHUNK = 8; // numbers of 16 bytes

typedef unsigned short bf16;

// As device/arguments/rows.rs has it.
struct Arguments {
    const bf16* x; // (rows, width)
    const bf16* y; // as x, or (width)
    const float* a;
    const float* b;
    bf16* out; // as x
    long long a_row, b_row; // numbers from one frame's, or row's, to the next one's
    int rows, width;
    int of_frame; // rows
    int turned;   // pairs of a head, that are turned
    float eps;
};
static_assert(sizeof(Arguments) == 56 + 5 * 4 + 4, "no padding but the last");

__device__ inline uint4 read_chunk(const bf16* from) { return *reinterpret_cast<const uint4*>(from); }

struct Chunk {
    float of[CHUNK];

    __device__ static Chunk widened(uint4 four) {
        unsigned both[4] = {four.x, four.y, four.z, four.w};
        Chunk chunk;
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) chunk.of[i] = widen(both[i / 2] >> i % 2 * 16);
        return chunk;
    }

    __device__ static Chunk read(const bf16* from) { return widened(read_chunk(from)); }

    __device__ static Chunk read(const float* from) {
        const float4* two = reinterpret_cast<const float4*>(from);
        return {two[0].x, two[0].y, two[0].z, two[0].w, two[1].x, two[1].y, two[1].z, two[1].w};
    }

    __device__ void write(bf16* to) const {
        unsigned x = pack(of[0], of[1]), y = pack(of[2], of[3]), z = pack(of[4], of[5]), w = pack(of[6], of[7]);
        *reinterpret_cast<uint4*>(to) = {x, y, z, w};
    }
};

__device__ inline float square(float x) { return x * x; }
__device__ inline float silu(float x) { return x / (1 + power_of_two(-1.442695041f * x)); }

// x + y * a, a chunk of each thread.
extern "C" __global__ void __launch_bounds__(THREADS) gate(const __grid_constant__ Arguments a) {
    int of_row = a.width / CHUNK, chunk = blockIdx.x * THREADS + threadIdx.x, row = chunk / of_row;
    if (row >= a.rows) return;
    long long at = (long long)chunk * CHUNK;
    Chunk x = Chunk::read(a.x + at), y = Chunk::read(a.y + at);
    Chunk factor = Chunk::read(a.a + row / a.of_frame * a.a_row + chunk % of_row * CHUNK);
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) x.of[j] += y.of[j] * factor.of[j];
    x.write(a.out + at);
}

// A row of at most so many chunks a lane, and who has it: all lanes of a warp, or as few of them as it has chunks.
template <int MOST>
struct Row {
    int lanes = 32, lane, number, width;
    long long start; // its first number
    uint4 chunks[MOST];

    __device__ Row(const Arguments& a) : width(a.width) {
        while (lanes > 1 && lanes / 2 * CHUNK >= width) lanes /= 2;
        int thread = blockIdx.x * THREADS + threadIdx.x;
        lane = thread % lanes;
        // At the end several may have the last one: of a warp, nobody is missing.
        number = thread / lanes < a.rows ? thread / lanes : a.rows - 1;
        start = (long long)number * width;
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            chunks[i] = column(i) < width ? read_chunk(a.x + start + column(i)) : uint4{0, 0, 0, 0};
    }

    __device__ int column(int i) const { return (i * lanes + lane) * CHUNK; }

    // The mean of what `f` makes of each number.
    template <typename F>
    __device__ float mean(F f) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < MOST; ++i) {
            if (column(i) >= width) continue;
            Chunk chunk = Chunk::widened(chunks[i]);
#pragma unroll
            for (int j = 0; j < CHUNK; ++j) sum += f(chunk.of[j]);
        }
        for (int mask = lanes / 2; mask > 0; mask /= 2) sum += exchange(sum, mask);
        return sum / width;
    }

    // Writes what `f` makes of each chunk and its first column.
    template <typename F>
    __device__ void map(bf16* out, F f) const {
#pragma unroll
        for (int i = 0; i < MOST; ++i) {
            if (column(i) >= width) continue;
            Chunk chunk = Chunk::widened(chunks[i]);
            f(chunk, column(i));
            chunk.write(out + start + column(i));
        }
    }
};

// silu(x / max(|x|, 1e-12) * sqrt(width) * y)
template <int MOST>
__device__ void norm_silu(const Arguments& a) {
    Row<MOST> row(a);
    float length = sqrtf(row.mean(square) * a.width);
    float scale = sqrtf(a.width) / fmaxf(length, 1e-12f);
    row.map(a.out, [&](Chunk& x, int column) {
        Chunk y = Chunk::read(a.y + column);
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) x.of[j] = silu(x.of[j] * scale * y.of[j]);
    });
}

// (x - mean) / deviation * a + b
template <int MOST>
__device__ void modulate(const Arguments& a) {
    Row<MOST> row(a);
    int frame = row.number / a.of_frame;
    float middle = row.mean([](float x) { return x; });
    float variance = row.mean([=](float x) { return square(x - middle); });
    float factor = 1 / sqrtf(variance + a.eps);
    row.map(a.out, [&](Chunk& x, int column) {
        Chunk scale = Chunk::read(a.a + frame * a.a_row + column), shift = Chunk::read(a.b + frame * a.b_row + column);
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) x.of[j] = (x.of[j] - middle) * factor * scale.of[j] + shift.of[j];
    });
}

// x / sqrt(mean x^2 + eps) * y
template <int MOST>
__device__ void rms_norm(const Arguments& a) {
    Row<MOST> row(a);
    float factor = 1 / sqrtf(row.mean(square) + a.eps);
    row.map(a.out, [&](Chunk& x, int column) {
        Chunk y = Chunk::read(a.y + column);
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) x.of[j] *= factor * y.of[j];
    });
}

// The same, of which pairs of each head are then turned: a has cosines, b sines.
template <int MOST>
__device__ void norm_rotate(const Arguments& a) {
    Row<MOST> row(a);
    const float *cosines = a.a + row.number * a.a_row, *sines = a.b + row.number * a.b_row;
    float factor = 1 / sqrtf(row.mean(square) + a.eps);
    row.map(a.out, [&](Chunk& x, int column) {
        Chunk y = Chunk::read(a.y + column);
        int pair = column / 2 % a.turned;
        float4 cosine = *reinterpret_cast<const float4*>(cosines + pair);
        float4 sine = *reinterpret_cast<const float4*>(sines + pair);
        const float c[4] = {cosine.x, cosine.y, cosine.z, cosine.w}, s[4] = {sine.x, sine.y, sine.z, sine.w};
#pragma unroll
        for (int j = 0; j < CHUNK; j += 2) {
            float even = x.of[j] * factor * y.of[j], odd = x.of[j + 1] * factor * y.of[j + 1];
            x.of[j] = even * c[j / 2] - odd * s[j / 2];
            x.of[j + 1] = even * s[j / 2] + odd * c[j / 2];
        }
    });
}

#define ROWS_OF(name, MOST)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) name##_##MOST(const __grid_constant__ Arguments a) { \
        name<MOST>(a);                                                                                       \
    }
// As device/arguments/rows.rs has them.
#define ROWS(name) ROWS_OF(name, 1) ROWS_OF(name, 6) ROWS_OF(name, 20)

ROWS(norm_silu)
ROWS(modulate)
ROWS(rms_norm)
ROWS(norm_rotate)
