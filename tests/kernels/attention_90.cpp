#include "attention_90.cu"

// As device/kernels/attention.rs launches it.
extern "C" void run_attention(const Arguments* arguments, int columns, int heads, int, bool is_late) {
    launch(columns, heads, THREADS, is_late, [=] { attention_90(*arguments); });
}
