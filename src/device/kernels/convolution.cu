// A convolution over (frames, height, width, channels), as a product that reads its windows in place: no copy is
// made that is padded, enlarged or unfolded. A block of threads computes some pixels of some outputs; products of
// windows and weights come by slices of some channels of one tap, several on their way at once. Numbers are
// bf16 or f16, sums f32. What a window has outside of the frame is zeros that are never read.
#include "convolution.cuh"
#include "warp.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int PIXELS = 128;
constexpr int DEPTH = 32; // channels of a slice
constexpr int SLICES = 4;  // on their way at once
constexpr int CHUNKS = DEPTH / CHUNK;
constexpr int ROWS = THREADS / CHUNKS; // of a tile, fetched at once

// A tap, and the first of some channels: what the product comes by.
struct Slice {
    int frame = 0, row = 0, column = 0, channel = 0;

    __device__ void advance(const Arguments& a) {
        if ((channel += DEPTH) < a.inputs) return;
        channel = 0;
        if (++column < a.taps[2]) return;
        column = 0;
        if (++row < a.taps[1]) return;
        row = 0;
        ++frame;
    }

    __device__ int tap(const Arguments& a) const { return (frame * a.taps[1] + row) * a.taps[2] + column; }
    __device__ bool is_one(const Arguments& a) const { return frame < a.taps[0]; }
};

// Where 16 bytes of a row are in a tile: shuffled, so that eight rows' same chunks lie in different banks.
__device__ inline int place(int row, int chunk) { return row * CHUNKS + (chunk ^ (row / 2 % CHUNKS)); }

// An output pixel whose windows a thread fetches.
struct Pixel {
    int frame, y, x;
    bool is_one;

    __device__ Pixel(const Arguments& a, int index) {
        x = index % a.out_width;
        y = index / a.out_width % a.out_height;
        frame = index / a.out_width / a.out_height;
        is_one = frame < a.out_frames;
    }

    // What it sees through a tap; nothing where that is zeros.
    __device__ const number* seen(const Arguments& a, const Slice& slice) const {
        int from = frame * a.frame_stride + slice.frame - a.zeros;
        int up = y * a.stride + slice.row - a.padding, left = x * a.stride + slice.column - a.padding;
        if (!is_one || from < 0 || up < 0 || left < 0) return nullptr;
        up >>= a.is_doubled, left >>= a.is_doubled;
        if (up >= a.height || left >= a.width) return nullptr;
        bool is_past = from < a.past_frames;
        long long row = (long long)(is_past ? from : from - a.past_frames) * a.height + up;
        return (is_past ? a.past : a.xs) + (row * a.width + left) * a.inputs;
    }
};

// Windows and weights of one slice start on their way.
template <int OUTPUTS>
__device__ void fetch(uint4* windows, const Arguments& a, const Pixel (&pixels)[2], const Slice& slice) {
    uint4* weights = windows + PIXELS * CHUNKS;
    int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS, channel = slice.channel + chunk * CHUNK;
    bool is_channel = channel < a.inputs;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const number* seen = is_channel ? pixels[i].seen(a, slice) : nullptr;
        copy_later(windows + place(first + i * ROWS, chunk), seen ? seen + channel : a.xs, seen);
    }
    const number* tap = a.weight + (long long)slice.tap(a) * a.outputs * a.inputs;
#pragma unroll
    for (int row = first; row < OUTPUTS; row += ROWS) {
        int output = blockIdx.y * OUTPUTS + row;
        bool is_there = is_channel && output < a.outputs;
        copy_later(weights + place(row, chunk), is_there ? tap + output * a.inputs + channel : tap, is_there);
    }
}

// Sums of 32 pixels and half of a block's outputs, those of this warp.
template <typename Number, int OUTPUTS>
struct Sums {
    static constexpr int TILES = OUTPUTS / 16;
    float of[2][TILES][4] = {};

    __device__ static int row() { return threadIdx.x / 64 * 32; }
    __device__ static int column() { return threadIdx.x / 32 % 2 * (OUTPUTS / 2); }

    __device__ void add(const uint4* windows, const uint4* weights) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < DEPTH / 16; ++k) {
            unsigned a[2][4], b[4];
#pragma unroll
            for (int m = 0; m < 2; ++m)
                load_matrices(a[m], windows + place(row() + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int n = 0; n < TILES; n += 2) {
                int output = column() + 8 * n + lane / 16 * 8 + lane % 8;
                load_matrices(b, weights + place(output, 2 * k + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    Number::multiply_add(of[m][n], a[m], b[0], b[1]);
                    Number::multiply_add(of[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    __device__ void store(const Arguments& a) const {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                long long pixel = (long long)blockIdx.x * PIXELS + row() + 16 * m + 8 * half + lane / 4;
                if (pixel >= (long long)a.out_frames * a.out_height * a.out_width) continue;
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
                    int output = blockIdx.y * OUTPUTS + column() + 8 * n + lane % 4 * 2;
                    put<Number>(a, pixel, output, of[m][n][2 * half], of[m][n][2 * half + 1]);
                }
            }
    }
};

// A block of threads for PIXELS pixels (x) and OUTPUTS outputs (y).
template <typename Number, int OUTPUTS>
__device__ void convolve(const Arguments& a) {
    constexpr int PLACE = (PIXELS + OUTPUTS) * CHUNKS; // of a slice, in 16 bytes
    SHARED(uint4, shared);
    int first = blockIdx.x * PIXELS + threadIdx.x / CHUNKS;
    const Pixel pixels[2] = {Pixel(a, first), Pixel(a, first + ROWS)};
    Slice next;
    auto begin = [&](int number) {
        if (next.is_one(a)) fetch<OUTPUTS>(shared + number % SLICES * PLACE, a, pixels, next);
        next.advance(a);
        close_group();
    };
    for (int number = 0; number < SLICES - 1; ++number) begin(number);
    Sums<Number, OUTPUTS> sums;
    int slices = a.taps[0] * a.taps[1] * a.taps[2] * ((a.inputs + DEPTH - 1) / DEPTH);
    for (int number = 0; number < slices; ++number) {
        wait_for_groups<SLICES - 2>();
        __syncthreads(); // this slice is there, and everybody has done with the one before it
        begin(number + SLICES - 1);
        const uint4* windows = shared + number % SLICES * PLACE;
        sums.add(windows, windows + PIXELS * CHUNKS);
    }
    sums.store(a);
}

#define CONVOLUTION(Number, name, OUTPUTS)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) convolution_##name##_##OUTPUTS(                 \
        const __grid_constant__ Arguments arguments) {                                                    \
        convolve<Number, OUTPUTS>(arguments);                                                             \
    }

CONVOLUTION(Bf16, bf16, 32)
CONVOLUTION(Bf16, bf16, 64)
CONVOLUTION(Bf16, bf16, 96)
CONVOLUTION(Bf16, bf16, 128)
CONVOLUTION(F16, f16, 32)
CONVOLUTION(F16, f16, 64)
CONVOLUTION(F16, f16, 96)
CONVOLUTION(F16, f16, 128)
