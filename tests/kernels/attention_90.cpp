#include "attention_90.cu"

// As device/kernels/attention.rs launches it.
extern "C" void run_attention(const Arguments* arguments, int columns, int heads, int, int parts, bool is_late) {
    launch({columns, heads, parts}, THREADS, is_late, [=] { attention_90(*arguments); });
    if (parts == 1) return;
    int rows = arguments->queries * heads, of_block = GROUP / 32;
    launch({(rows + of_block - 1) / of_block, 1, 1}, GROUP, is_late, [=] { attention_90_join(*arguments); });
}
