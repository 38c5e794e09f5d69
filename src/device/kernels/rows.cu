// What is done to each row of an activation between products: read once, written once, by a warp, or by a part of
// one where a row is narrow. Numbers are bf16, arithmetic is f32.
#include "warp.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int CHUNK = 8; // numbers of 16 bytes

typedef unsigned short bf16;

// As device/arguments.rs has it.
struct Arguments {
    const bf16* x; // (rows, width)
    const bf16* y; // as x, or (width)
    const bf16* z; // as x, or nothing
    const float* a;
    const float* b;
    bf16* out; // as x
    long long a_row, b_row; // numbers from one frame's, or row's, to the next one's
    int rows, width;
    int of_frame; // rows
    int turned;   // pairs of a head, that are turned
    float eps;
};
static_assert(sizeof(Arguments) == 64 + 5 * 4 + 4, "no padding but the last");

struct Chunk {
    float of[CHUNK];

    __device__ static Chunk read(const bf16* from) {
        uint4 four = *reinterpret_cast<const uint4*>(from);
        unsigned both[4] = {four.x, four.y, four.z, four.w};
        Chunk chunk;
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) chunk.of[i] = widen(both[i / 2] >> i % 2 * 16);
        return chunk;
    }

    __device__ void write(bf16* to) const {
        *reinterpret_cast<uint4*>(to) = {pack(of[0], of[1]), pack(of[2], of[3]), pack(of[4], of[5]), pack(of[6], of[7])};
    }
};

// A row, and who has it: all lanes of a warp, or as few of them as it has chunks.
struct Row {
    int lanes = 32, lane, number;
    long long start; // its first number

    __device__ Row(const Arguments& a) {
        while (lanes > 1 && lanes / 2 * CHUNK >= a.width) lanes /= 2;
        int thread = blockIdx.x * THREADS + threadIdx.x;
        lane = thread % lanes;
        // At the end several may have the last one: of a warp, nobody is missing.
        number = thread / lanes < a.rows ? thread / lanes : a.rows - 1;
        start = (long long)number * a.width;
    }

    // The sum over its lanes.
    __device__ float all(float sum) const {
        for (int mask = lanes / 2; mask > 0; mask /= 2) sum += exchange(sum, mask);
        return sum;
    }

    // The mean of what `f` makes of each number.
    template <typename F>
    __device__ float mean(const Arguments& a, F f) const {
        float sum = 0;
        for (int i = lane * CHUNK; i < a.width; i += lanes * CHUNK) {
            Chunk chunk = Chunk::read(a.x + start + i);
#pragma unroll
            for (int j = 0; j < CHUNK; ++j) sum += f(chunk.of[j]);
        }
        return all(sum) / a.width;
    }

    // Writes what `f` makes of each number and its place in the row.
    template <typename F>
    __device__ void map(const Arguments& a, F f) const {
        for (int i = lane * CHUNK; i < a.width; i += lanes * CHUNK) {
            Chunk chunk = Chunk::read(a.x + start + i);
#pragma unroll
            for (int j = 0; j < CHUNK; ++j) chunk.of[j] = f(chunk.of[j], i + j);
            chunk.write(a.out + start + i);
        }
    }
};

__device__ inline float square(float x) { return x * x; }
__device__ inline float silu(float x) { return x / (1 + power_of_two(-1.442695041f * x)); }

// In its tanh form.
__device__ inline float gelu(float x) {
    float twice = 1.595769122f * (x + 0.044715f * x * x * x);
    return x / (1 + power_of_two(-1.442695041f * twice));
}

// x + y, and + z
extern "C" __global__ void __launch_bounds__(THREADS) add(const __grid_constant__ Arguments a) {
    Row row(a);
    row.map(a, [&](float x, int i) { return x + widen(a.y[i]) + (a.z ? widen(a.z[row.start + i]) : 0); });
}

// gelu(x + y)
extern "C" __global__ void __launch_bounds__(THREADS) add_gelu(const __grid_constant__ Arguments a) {
    Row(a).map(a, [&](float x, int i) { return gelu(x + widen(a.y[i])); });
}

// silu(x / max(|x|, 1e-12) * sqrt(width) * y)
extern "C" __global__ void __launch_bounds__(THREADS) norm_silu(const __grid_constant__ Arguments a) {
    Row row(a);
    float length = sqrtf(row.mean(a, square) * a.width);
    float scale = sqrtf(a.width) / fmaxf(length, 1e-12f);
    row.map(a, [&](float x, int i) { return silu(x * scale * widen(a.y[i])); });
}

// (x - mean) / deviation * a + b
extern "C" __global__ void __launch_bounds__(THREADS) modulate(const __grid_constant__ Arguments a) {
    Row row(a);
    const float* scale = a.a + row.number / a.of_frame * a.a_row;
    const float* shift = a.b + row.number / a.of_frame * a.b_row;
    float middle = row.mean(a, [](float x) { return x; });
    float variance = row.mean(a, [=](float x) { return square(x - middle); });
    float factor = 1 / sqrtf(variance + a.eps);
    row.map(a, [&](float x, int i) { return (x - middle) * factor * scale[i] + shift[i]; });
}

// x + y * a
extern "C" __global__ void __launch_bounds__(THREADS) gate(const __grid_constant__ Arguments a) {
    Row row(a);
    const float* factor = a.a + row.number / a.of_frame * a.a_row;
    row.map(a, [&](float x, int i) { return x + widen(a.y[row.start + i]) * factor[i]; });
}

// x / sqrt(mean x^2 + eps) * y
extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(const __grid_constant__ Arguments a) {
    Row row(a);
    float factor = 1 / sqrtf(row.mean(a, square) + a.eps);
    row.map(a, [&](float x, int i) { return x * factor * widen(a.y[i]); });
}

// The same, of which pairs of each head are then turned: a has cosines, b sines.
extern "C" __global__ void __launch_bounds__(THREADS) norm_rotate(const __grid_constant__ Arguments a) {
    Row row(a);
    const float *cosines = a.a + row.number * a.a_row, *sines = a.b + row.number * a.b_row;
    float factor = 1 / sqrtf(row.mean(a, square) + a.eps);
    for (int i = row.lane * CHUNK; i < a.width; i += row.lanes * CHUNK) {
        Chunk chunk = Chunk::read(a.x + row.start + i);
#pragma unroll
        for (int j = 0; j < CHUNK; j += 2) {
            float even = chunk.of[j] * factor * widen(a.y[i + j]), odd = chunk.of[j + 1] * factor * widen(a.y[i + j + 1]);
            int pair = (i + j) / 2 % a.turned;
            chunk.of[j] = even * cosines[pair] - odd * sines[pair];
            chunk.of[j + 1] = even * sines[pair] + odd * cosines[pair];
        }
        chunk.write(a.out + row.start + i);
    }
}
