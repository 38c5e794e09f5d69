#include "rows.cu"

template <int MOST>
void run_row(const Arguments& arguments, int which) {
    if (which == 0) norm_silu<MOST>(arguments);
    if (which == 1) modulate<MOST>(arguments);
    if (which == 2) norm_rotate<MOST>(arguments);
    if (which == 3) rms_norm<MOST>(arguments);
}

// As device/kernels/rows.rs launches them; `most` is 0 for the one of which each thread has a chunk.
extern "C" void run_rows(const Arguments* arguments, int columns, int which, int most, bool is_late) {
    launch({columns, 1, 1}, THREADS, is_late, [=] {
        if (most == 1) run_row<1>(*arguments, which);
        if (most == 6) run_row<6>(*arguments, which);
        if (most == 20) run_row<20>(*arguments, which);
        if (most == 0) gate(*arguments);
    });
}
