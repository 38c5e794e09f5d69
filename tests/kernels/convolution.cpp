#include "convolution.cu"

// As device/kernels/convolution.rs launches it.
extern "C" void run_convolution(const Arguments* arguments, int columns, int rows, int outputs, bool is_late) {
    launch(columns, rows, THREADS, is_late, [=] {
        if (outputs == 32) convolution_32(*arguments);
        if (outputs == 64) convolution_64(*arguments);
        if (outputs == 96) convolution_96(*arguments);
        if (outputs == 128) convolution_128(*arguments);
    });
}
