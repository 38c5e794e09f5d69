// Starts a kernel of the file before this one, as device/kernels/mod.rs does.
extern "C" void run_kernel(void (*kernel)(const Arguments), const Arguments* arguments, const int* grid, int threads,
                           int shared_bytes, bool is_late) {
    launch({grid[0], grid[1], grid[2]}, threads, shared_bytes, is_late, [=] { kernel(*arguments); });
}
