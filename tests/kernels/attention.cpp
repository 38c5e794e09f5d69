#include "attention.cu"

// As device/kernels/attention.rs launches it.
extern "C" void run_attention(const Arguments* arguments, int columns, int heads, int width, int, bool is_late) {
    launch({columns, heads, 1}, THREADS, is_late, [=] {
        if (width == 32) attention_32(*arguments);
        if (width == 64) attention_64(*arguments);
        if (width == 128) attention_128(*arguments);
    });
}
