// What kernels for GPUs of compute capability 9.0 ask of a warpgroup, four warps, beyond what warp.cuh has. On the
// host, tests/kernels/host.h has the same names.
#pragma once

#include "warp.cuh"

constexpr int GROUP = 128; // threads of a warpgroup

#ifdef __CUDACC__

// The memory that a launch gives each block of threads, from a multiple of a KiB on.
template <typename T>
__device__ T& shared_memory() {
    extern __shared__ __align__(1024) char memory[];
    return *reinterpret_cast<T*>(memory);
}

// A barrier in shared memory, whose phases end when all who are expected have arrived.
typedef unsigned long long Barrier;

__device__ inline void begin(Barrier& barrier, int expected) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(SHARED_ADDRESS(&barrier)), "r"(expected) : "memory");
}

__device__ inline void arrive(Barrier& barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" : : "r"(SHARED_ADDRESS(&barrier)) : "memory");
}

// This thread arrives when all copies have that it has begun.
__device__ inline void arrive_with_copies(Barrier& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" : : "r"(SHARED_ADDRESS(&barrier)) : "memory");
}

// This thread arrives, and the phase waits for so many bytes that it copies.
__device__ inline void arrive_with_bytes(Barrier& barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
                 : : "r"(SHARED_ADDRESS(&barrier)), "r"(bytes) : "memory");
}

// Many bytes to shared memory, later, for which a barrier waits.
__device__ inline void copy_all_later(void* to, const void* from, int bytes, Barrier& barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 : : "r"(SHARED_ADDRESS(to)), "l"(from), "r"(bytes), "r"(SHARED_ADDRESS(&barrier)) : "memory");
}

// Until the phase is over that is even or odd. What the copies of others have brought can be multiplied then.
__device__ inline void wait_for(Barrier& barrier, int phase) {
    asm volatile(
        "{\n"
        ".reg .pred is_over;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared.b64 is_over, [%0], %1;\n"
        "@is_over bra done;\n"
        "bra again;\n"
        "done:\n"
        "}" : : "r"(SHARED_ADDRESS(&barrier)), "r"(phase & 1) : "memory");
}

// What was copied to shared memory is there for products, too.
__device__ inline void see_copies() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }

// Of registers that a block of threads was started with, a warpgroup has from now on so many a thread.
template <int count>
__device__ inline void keep_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(count)); }
template <int count>
__device__ inline void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(count)); }

// A matrix in shared memory, 16 numbers deep.
typedef unsigned long long Matrix;

// Of rows of 128 bytes, from a multiple of a KiB on, of which each 16 bytes are shuffled: chunk c of row r is in the
// place of chunk c ^ r % 8. `stride` bytes are between each eight rows. Rows are what is not summed over, or, for the
// second matrix of a product whose first is in registers, what is: then `leading` bytes are between each 64 columns.
__device__ inline Matrix shuffled(const void* start, int leading, int stride) {
    return (unsigned long long)(SHARED_ADDRESS(start) >> 4) | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32 | 1ull << 62;
}

// Of eight rows by eight numbers each time, 128 bytes: `leading` bytes are between neighbours in depth, `stride`
// between neighbours otherwise.
__device__ inline Matrix tiled(const void* start, int leading, int stride) {
    return (unsigned long long)(SHARED_ADDRESS(start) >> 4) | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32;
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }
__device__ inline void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory"); }

// All groups of products but the last `open` ones are computed.
template <int open>
__device__ inline void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(open) : "memory");
}

// Sums that are computed: nothing that reads them comes earlier.
template <int N>
__device__ inline void computed(float (&sums)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(sums[n][e]) : : "memory");
}

#define SUMS_1(s, i) "+f"(s[i][0]), "+f"(s[i][1]), "+f"(s[i][2]), "+f"(s[i][3])
#define SUMS_4(s, i) SUMS_1(s, i), SUMS_1(s, i + 1), SUMS_1(s, i + 2), SUMS_1(s, i + 3)
#define SUMS_8(s) SUMS_4(s, 0), SUMS_4(s, 4)
#define SUMS_12(s) SUMS_8(s), SUMS_4(s, 8)
#define SUMS_16(s) SUMS_12(s), SUMS_4(s, 12)
#define REGISTERS_4 "{%0, %1, %2, %3}"
#define FIRST_32                                                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                          \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FIRST_48 FIRST_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define REGISTERS_32 "{" FIRST_32 "}"
#define REGISTERS_48 "{" FIRST_48 "}"
#define REGISTERS_64                                                                                   \
    "{" FIRST_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// sums = a bT, or more of it: 64x16 times 16 by eight columns for each tile of sums; sums are f32.
#define MULTIPLY(Number, type, tiles, columns, registers, sums_of, a_at, b_at, more_at)                   \
    __device__ inline void multiply(Number, float (&sums)[tiles][4], Matrix a, Matrix b, bool is_more) {   \
        asm volatile(                                                                                      \
            "{\n"                                                                                          \
            ".reg .pred is_more;\n"                                                                        \
            "setp.ne.b32 is_more, " more_at ", 0;\n"                                                       \
            "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " " registers ", " a_at    \
            ", " b_at ", is_more, 1, 1, 0, 0;\n"                                                           \
            "}" : sums_of : "l"(a), "l"(b), "r"(int(is_more)));                                            \
    }
#define MULTIPLY_ALL(Number, type)                                                                         \
    MULTIPLY(Number, type, 1, "8", REGISTERS_4, SUMS_1(sums, 0), "%4", "%5", "%6")                         \
    MULTIPLY(Number, type, 8, "64", REGISTERS_32, SUMS_8(sums), "%32", "%33", "%34")                       \
    MULTIPLY(Number, type, 12, "96", REGISTERS_48, SUMS_12(sums), "%48", "%49", "%50")                     \
    MULTIPLY(Number, type, 16, "128", REGISTERS_64, SUMS_16(sums), "%64", "%65", "%66")

MULTIPLY_ALL(Bf16, "bf16")
MULTIPLY_ALL(F16, "f16")

// sums += a b in bf16; a is in registers, as multiply_add() of a warp has it.
__device__ inline void multiply(float (&sums)[16][4], const unsigned (&a)[4], Matrix b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " REGISTERS_64 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
        : SUMS_16(sums) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif
