// What convolution.cu computes, where windows are next to each other, on GPUs of compute capability 9.0. A block of
// threads has a patch of the picture in shared memory, with what its windows have around it, and all their taps are
// read from there: a product's rows are pixels in their places, from the tap's on. One warpgroup copies, two others
// multiply, some channels of one frame's taps at a time.
#include "convolution.cuh"
#include "hopper.cuh"

constexpr int CONSUMERS = 2; // warpgroups
constexpr int THREADS = GROUP * (1 + CONSUMERS);
constexpr int BUFFERS = 2;
constexpr int SIDE = 8;    // pixels of a square that a product has as rows
constexpr int SQUARES = 2; // of a warpgroup, next to each other
constexpr int DEPTH = 32;  // channels of a slice
constexpr int CHUNKS = DEPTH / CHUNK;
constexpr int TAPS = 9;    // of a frame, at most
constexpr int WIDTH = SIDE * SQUARES, HEIGHT = SIDE * CONSUMERS;  // of what a block of threads computes
constexpr int PITCH = WIDTH + 2, PATCH = PITCH * (HEIGHT + 2);    // with what is around it
constexpr int LEADING = PATCH * 16, STRIDE = PITCH * 16;          // of a patch, in bytes

// Shared memory. Barriers are `full` when a slice is there, and `empty` when nobody reads it any more.
template <int OUTPUTS>
struct Shared {
    uint4 patches[BUFFERS][CHUNKS][PATCH];
    uint4 weights[BUFFERS][TAPS * CHUNKS * OUTPUTS];
    int places[PATCH]; // of a pixel in its frame; below zero where it is none
    Barrier full[BUFFERS], empty[BUFFERS];
};

// The part of the output that a block of threads computes.
struct Part {
    int frame, top, left;

    __device__ Part(const Arguments& a) {
        int columns = (a.out_width + WIDTH - 1) / WIDTH, rows = (a.out_height + HEIGHT - 1) / HEIGHT;
        left = blockIdx.x % columns * WIDTH;
        top = blockIdx.x / columns % rows * HEIGHT;
        frame = blockIdx.x / columns / rows;
    }
};

// Slices that there is something to multiply in: frames of zeros are none.
template <typename F>
__device__ void for_slices(const Arguments& a, const Part& part, F f) {
    int buffer = 0, phase = 0, slices = (a.inputs + DEPTH - 1) / DEPTH;
    for (int frame = max(0, a.zeros - part.frame); frame < a.taps[0]; ++frame)
        for (int slice = 0; slice < slices; ++slice) {
            f(frame, slice, buffer, phase);
            buffer = (buffer + 1) % BUFFERS;
            phase ^= buffer == 0;
        }
}

template <int OUTPUTS>
__device__ void find_places(Shared<OUTPUTS>& memory, const Arguments& a, const Part& part) {
    for (int i = threadIdx.x; i < PATCH; i += THREADS) {
        int y = part.top + i / PITCH - a.padding, x = part.left + i % PITCH - a.padding;
        bool is_one = y >= 0 && x >= 0;
        y >>= a.is_doubled, x >>= a.is_doubled;
        memory.places[i] = is_one && y < a.height && x < a.width ? y * a.width + x : -1;
    }
}

// Part of the channels of a patch.
template <int OUTPUTS>
__device__ void fetch(Shared<OUTPUTS>& memory, int buffer, const Arguments& a, int frame, int slice) {
    int chunk = threadIdx.x % CHUNKS, channel = slice * DEPTH + chunk * CHUNK;
    bool is_past = frame < a.past_frames;
    const number* pixels = is_past ? a.past : a.xs;
    pixels += (long long)(is_past ? frame : frame - a.past_frames) * a.height * a.width * a.inputs + channel;
    bool is_channel = channel < a.inputs;
#pragma unroll 4
    for (int i = threadIdx.x / CHUNKS; i < PATCH; i += GROUP / CHUNKS) {
        int place = memory.places[i];
        bool is_there = is_channel && place >= 0;
        copy_later(&memory.patches[buffer][chunk][i], is_there ? pixels + (long long)place * a.inputs : a.xs, is_there);
    }
}

template <int OUTPUTS>
__device__ void produce(Shared<OUTPUTS>& memory, const Arguments& a, const Part& part) {
    int slices = (a.inputs + DEPTH - 1) / DEPTH, numbers = a.taps[1] * a.taps[2] * DEPTH * OUTPUTS;
    for_slices(a, part, [&](int frame, int slice, int buffer, int phase) {
        wait_for(memory.empty[buffer], phase ^ 1);
        if (threadIdx.x == 0) {
            long long at = ((long long)blockIdx.y * a.taps[0] + frame) * slices + slice;
            arrive_with_bytes(memory.full[buffer], numbers * 2);
            copy_all_later(memory.weights[buffer], a.weight + at * numbers, numbers * 2, memory.full[buffer]);
        }
        fetch(memory, buffer, a, part.frame + frame - a.zeros, slice);
        arrive_with_copies(memory.full[buffer]);
    });
}

// Those of a warpgroup.
template <typename Number, int OUTPUTS>
struct Sums {
    float of[SQUARES][OUTPUTS / 8][4] = {};

    __device__ static int group() { return threadIdx.x / GROUP - 1; }

    template <int SIDES>
    __device__ void add(const Shared<OUTPUTS>& memory, int buffer) {
        const uint4* weights = memory.weights[buffer];
        begin_products();
#pragma unroll
        for (int row = 0; row < SIDES; ++row)
#pragma unroll
            for (int column = 0; column < SIDES; ++column)
#pragma unroll
                for (int chunk = 0; chunk < CHUNKS; chunk += 2, weights += 2 * OUTPUTS) {
                    const uint4* pixels = memory.patches[buffer][chunk] + (group() * SIDE + row) * PITCH + column;
                    Matrix b = tiled(weights, OUTPUTS * 16, SIDE * 16);
#pragma unroll
                    for (int i = 0; i < SQUARES; ++i)
                        multiply(Number(), of[i], tiled(pixels + i * SIDE, LEADING, STRIDE), b, true);
                }
        close_products();
        wait_for_products<0>();
#pragma unroll
        for (int i = 0; i < SQUARES; ++i) computed(of[i]);
    }

    __device__ void store(const Arguments& a, const Part& part) const {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
        for (int i = 0; i < SQUARES; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int y = part.top + group() * SIDE + warp * 2 + half, x = part.left + i * SIDE + lane / 4;
                if (y >= a.out_height || x >= a.out_width) continue;
                long long pixel = ((long long)part.frame * a.out_height + y) * a.out_width + x;
#pragma unroll
                for (int n = 0; n < OUTPUTS / 8; ++n) {
                    int output = blockIdx.y * OUTPUTS + 8 * n + lane % 4 * 2;
                    put<Number>(a, pixel, output, of[i][n][2 * half], of[i][n][2 * half + 1]);
                }
            }
    }
};

template <typename Number, int SIDES, int OUTPUTS>
__device__ void consume(Shared<OUTPUTS>& memory, const Arguments& a, const Part& part) {
    Sums<Number, OUTPUTS> sums;
    for_slices(a, part, [&](int, int, int buffer, int phase) {
        wait_for(memory.full[buffer], phase);
        see_copies();
        sums.template add<SIDES>(memory, buffer);
        if (threadIdx.x % 32 == 0) arrive(memory.empty[buffer]);
    });
    sums.store(a, part);
}

// A block of threads for a part of a frame (x) of OUTPUTS outputs (y).
template <typename Number, int OUTPUTS>
__device__ void convolve(const Arguments& a) {
    auto& memory = shared_memory<Shared<OUTPUTS>>();
    Part part(a);
    if (threadIdx.x == 0) {
        for (int i = 0; i < BUFFERS; ++i) {
            begin(memory.full[i], GROUP + 1); // who copies weights arrives twice
            begin(memory.empty[i], CONSUMERS * GROUP / 32);
        }
        see_copies(); // the other way round: barriers are there for copies, too
    }
    find_places(memory, a, part);
    __syncthreads();
    if (threadIdx.x < GROUP) {
        keep_registers<40>();
        produce(memory, a, part);
        return;
    }
    take_registers<232>();
    a.taps[1] == 1 ? consume<Number, 1>(memory, a, part) : consume<Number, 3>(memory, a, part);
}

#define CONVOLUTION(Number, name, OUTPUTS)                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) convolution_90_##name##_##OUTPUTS(          \
        const __grid_constant__ Arguments arguments) {                                                   \
        convolve<Number, OUTPUTS>(arguments);                                                            \
    }

CONVOLUTION(Bf16, bf16, 8)
CONVOLUTION(Bf16, bf16, 64)
CONVOLUTION(Bf16, bf16, 96)
CONVOLUTION(Bf16, bf16, 128)
CONVOLUTION(F16, f16, 8)
CONVOLUTION(F16, f16, 64)
CONVOLUTION(F16, f16, 96)
CONVOLUTION(F16, f16, 128)
