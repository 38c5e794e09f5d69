// Kernels on the host: fibers stand in for the threads of a block, and run one after the other until each waits
// for the others. What a warp does together is done when its last lane has come.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)

struct uint3 { int x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

constexpr int LANES = 32;
constexpr size_t STACK = 256 << 10;

static uint3 threadIdx, blockIdx, gridDim;
static uint4 block_memory[1 << 14]; // 256 KiB: more than any GPU has

#define SHARED(type, name) type* name = block_memory

// Threads of a block that wait for each other.
struct Meeting {
    int expected, arrived = 0;
    unsigned generation = 0;
};

struct Copy {
    void* to;
    const void* from;
    bool is_there;

    void make() const { is_there ? memcpy(to, from, 16) : memset(to, 0, 16); }
};

struct Fiber {
    ucontext_t context;
    std::deque<std::vector<Copy>> groups{1}; // of copies that are under way; the last is still open
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool is_done = false;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    Meeting all;
    ucontext_t scheduler;
    std::function<void()> kernel;
    bool is_late; // copies arrive when they have to, and not at once
    // What lanes bring to what they do together.
    const void* rows[1 << 5][LANES];
    unsigned fragments[1 << 5][LANES][6];
    float values[1 << 5][LANES];
};

static Block* block;

inline void wait_at(Meeting& meeting) {
    unsigned generation = meeting.generation;
    if (++meeting.arrived == meeting.expected) {
        meeting.arrived = 0;
        ++meeting.generation;
        return;
    }
    int self = threadIdx.x;
    while (meeting.generation == generation) {
        swapcontext(&block->fibers[self].context, &block->scheduler);
        threadIdx.x = self;
    }
}

inline void __syncthreads() { wait_at(block->all); }
inline int warp() { return threadIdx.x / LANES; }
inline int lane() { return threadIdx.x % LANES; }
inline void wait_for_warp() { wait_at(block->warps[warp()]); }

inline void run_fiber() {
    block->kernel();
    block->fibers[threadIdx.x].is_done = true;
    swapcontext(&block->fibers[threadIdx.x].context, &block->scheduler);
}

// All blocks of a grid, one after the other. Whoever does not wait for a copy is found out when copies are late,
// whoever does not wait for the readers before when they are not.
inline void launch(int columns, int rows, int threads, bool is_late, std::function<void()> kernel) {
    gridDim = {columns, rows, 1};
    for (int y = 0; y < rows; ++y)
        for (int x = 0; x < columns; ++x) {
            Block of_threads;
            block = &of_threads;
            blockIdx = {x, y, 0};
            block->kernel = kernel;
            block->is_late = is_late;
            block->fibers.resize(threads);
            block->warps.assign(threads / LANES, Meeting{LANES});
            block->all = Meeting{threads};
            memset(block_memory, 0xff, sizeof block_memory); // NaN to whoever reads what was never written
            for (Fiber& fiber : block->fibers) {
                getcontext(&fiber.context);
                fiber.context.uc_stack = {fiber.stack.get(), 0, STACK};
                makecontext(&fiber.context, run_fiber, 0);
            }
            for (int left = threads, turns = 0; left > 0; ++turns) {
                left = 0;
                for (int i = 0; i < threads; ++i)
                    if (!block->fibers[i].is_done) {
                        ++left;
                        threadIdx = {i, 0, 0};
                        swapcontext(&block->scheduler, &block->fibers[i].context);
                    }
                if (turns > 1 << 22) {
                    fprintf(stderr, "a block waits for itself\n");
                    abort();
                }
            }
        }
}

inline uint16_t number(const void* row, int index) {
    uint16_t value;
    memcpy(&value, static_cast<const char*>(row) + 2 * index, 2);
    return value;
}

inline void read_matrices(unsigned (&to)[4], const void* row, bool is_transposed) {
    auto& rows = block->rows[warp()];
    rows[lane()] = row;
    wait_for_warp();
    for (int i = 0; i < 4; ++i) {
        int first = lane() / 4, second = lane() % 4 * 2;
        auto at = [&](int j) {
            return is_transposed ? number(rows[8 * i + second + j], first) : number(rows[8 * i + first], second + j);
        };
        to[i] = at(0) | unsigned(at(1)) << 16;
    }
    wait_for_warp();
}

inline void load_matrices(unsigned (&to)[4], const void* row) { read_matrices(to, row, false); }
inline void load_transposed(unsigned (&to)[4], const void* row) { read_matrices(to, row, true); }

inline float half_of(unsigned both, int which) {
    unsigned bits = which ? both & 0xffff0000u : both << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto& fragments = block->fragments[warp()];
    unsigned own[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(fragments[lane()], own, sizeof own);
    wait_for_warp();
    // Where a lane keeps row r and column k of a, and row k and column n of b.
    auto of_a = [&](int r, int k) { return half_of(fragments[r % 8 * 4 + k % 8 / 2][r / 8 + k / 8 * 2], k % 2); };
    auto of_b = [&](int k, int n) { return half_of(fragments[n * 4 + k % 8 / 2][4 + k / 8], k % 2); };
    for (int e = 0; e < 4; ++e)
        for (int k = 0; k < 16; ++k)
            sum[e] += of_a(lane() / 4 + e / 2 * 8, k) * of_b(k, lane() % 4 * 2 + e % 2);
    wait_for_warp();
}

inline float exchange(float value, int mask) {
    auto& values = block->values[warp()];
    values[lane()] = value;
    wait_for_warp();
    float other = values[lane() ^ mask];
    wait_for_warp();
    return other;
}

inline void copy_later(void* to, const void* from, bool is_there) {
    Copy copy{to, from, is_there};
    block->is_late ? block->fibers[threadIdx.x].groups.back().push_back(copy) : copy.make();
}

inline void close_group() { block->fibers[threadIdx.x].groups.emplace_back(); }

template <int open>
inline void wait_for_groups() {
    auto& groups = block->fibers[threadIdx.x].groups;
    for (; groups.size() > open + 1; groups.pop_front())
        for (const Copy& copy : groups.front()) copy.make();
}

inline unsigned rounded(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline unsigned pack(float low, float high) { return rounded(low) | rounded(high) << 16; }
inline float widen(uint16_t number) { return half_of(number, 0); }
inline float power_of_two(float x) { return std::exp2(x); }
