// What the kernels of convolution.cu and convolution_90.cu are told, and how both end.
#pragma once

#include "warp.cuh"

constexpr int CHUNK = 8; // numbers of 16 bytes

typedef unsigned short number; // of 16 bits

// As device/arguments/convolution.rs has it.
struct Arguments {
    const number* past;     // (frames, height, width, inputs)
    const number* xs;       // the frames behind those
    const number* weight;   // as each kernel wants it
    const number* bias;     // (outputs)
    const number* residual; // as out, or nothing
    number* out;            // (frames, height, width, outputs)
    int zeros, past_frames; // frames of zeros before the past, frames of the past
    int height, width, inputs; // of a frame that comes in
    int out_frames, out_height, out_width, outputs;
    int taps[3], frame_stride, stride, padding;
    int is_doubled; // pixels are, along both sides, before the padding
    int is_relu;
};
static_assert(sizeof(Arguments) == 48 + 17 * 4 + 4, "no padding but the last");

// An output that is summed up, with all that follows.
template <typename Number>
__device__ float finish(const Arguments& a, long long at, int output, float sum) {
    sum += Number::widen(a.bias[output]);
    if (a.residual) sum += Number::widen(a.residual[at]);
    return a.is_relu && sum < 0 ? 0 : sum;
}

// Two neighbours, finished; in one go where rows are even.
template <typename Number>
__device__ void put(const Arguments& a, long long pixel, int output, float first, float second) {
    long long at = pixel * a.outputs + output;
    if (a.outputs % 2 == 0 && output < a.outputs) {
        first = finish<Number>(a, at, output, first), second = finish<Number>(a, at + 1, output + 1, second);
        *reinterpret_cast<unsigned*>(a.out + at) = Number::pack(first, second);
        return;
    }
    if (output < a.outputs) a.out[at] = Number::pack(finish<Number>(a, at, output, first), 0);
    if (output + 1 < a.outputs) a.out[at + 1] = Number::pack(finish<Number>(a, at + 1, output + 1, second), 0);
}
