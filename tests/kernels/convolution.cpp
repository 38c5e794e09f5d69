#include "convolution.cu"

// As device/kernels/convolution.rs launches it.
extern "C" void run_convolution(const Arguments* arguments, int columns, int rows, int outputs, bool is_f16, bool is_late) {
    auto run = [=](auto number) {
        if (outputs == 32) convolve<decltype(number), 32>(*arguments);
        if (outputs == 64) convolve<decltype(number), 64>(*arguments);
        if (outputs == 96) convolve<decltype(number), 96>(*arguments);
        if (outputs == 128) convolve<decltype(number), 128>(*arguments);
    };
    launch({columns, rows, 1}, THREADS, is_late, [=] { is_f16 ? run(F16()) : run(Bf16()); });
}
