#include "rows.cu"

// As device/kernels/rows.rs launches them.
extern "C" void run_rows(const Arguments* arguments, int columns, int which, bool is_late) {
    launch(columns, 1, THREADS, is_late, [=] {
        if (which == 0) norm_silu(*arguments);
        if (which == 1) modulate(*arguments);
        if (which == 2) gate(*arguments);
        if (which == 3) norm_rotate(*arguments);
        if (which == 4) add(*arguments);
        if (which == 5) add_gelu(*arguments);
        if (which == 6) rms_norm(*arguments);
    });
}
