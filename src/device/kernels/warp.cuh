// What kernels ask of a warp and of the copy engine. Compiled by a C++ compiler for the host, the same names
// come from tests/kernels/host.h, which has fibers in place of threads.
#pragma once

#ifndef __CUDACC__
#include "host.h"
#else

// The memory that a launch gives each block of threads.
#define SHARED(type, name) extern __shared__ type name[]
#define SHARED_ADDRESS(pointer) static_cast<unsigned>(__cvta_generic_to_shared(pointer))

// Four 8x8 matrices of 16-bit numbers: lane 8i + r names row r of matrix i, and every lane gets two
// neighbours of row lane / 4 of each.
__device__ inline void load_matrices(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(SHARED_ADDRESS(row)));
}

// The same of the transposed matrices.
__device__ inline void load_transposed(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(SHARED_ADDRESS(row)));
}

// sum += a b: 16x16 times 16x8 in bf16, sums in f32.
__device__ inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes to shared memory, later; zeros where there is nothing to copy.
__device__ inline void copy_later(void* to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 : : "r"(SHARED_ADDRESS(to)), "l"(from), "r"(is_there ? 16 : 0));
}

__device__ inline void close_group() { asm volatile("cp.async.commit_group;"); }

// All groups of copies but the last `open` ones have arrived, of this thread.
template <int open>
__device__ inline void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" : : "n"(open) : "memory");
}

// Two floats as bf16, rounded to nearest even, the first in the low half.
__device__ inline unsigned pack(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ inline float widen(unsigned short number) { return __uint_as_float(unsigned(number) << 16); }

__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// To the base of two.
__device__ inline float logarithm(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// What numbers of 16 bits a kernel computes with: how two floats become two, how one becomes a float, and
// multiply_add() of them.
struct Bf16 {
    __device__ static unsigned pack(float low, float high) { return ::pack(low, high); }
    __device__ static float widen(unsigned short number) { return ::widen(number); }
    __device__ static void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        ::multiply_add(sum, a, b0, b1);
    }
};

struct F16 {
    __device__ static unsigned pack(float low, float high) {
        unsigned both;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
        return both;
    }

    __device__ static float widen(unsigned short number) {
        float wide;
        asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(number));
        return wide;
    }

    __device__ static void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

// The value of the lane whose number differs in the bits of `mask`.
__device__ inline float exchange(float value, int mask) { return __shfl_xor_sync(0xffffffff, value, mask); }

#endif
