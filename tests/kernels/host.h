// Kernels on the host: fibers stand in for the threads of a block, and run one after the other until each waits
// for the others. What a warp does together is done when its last lane has come.
#pragma once

#include <algorithm>
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

using std::max;

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 { int x, y, z; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };

constexpr int LANES = 32;
constexpr size_t STACK = 256 << 10;

static uint3 threadIdx, blockIdx, gridDim;
alignas(1024) static uint4 block_memory[1 << 14]; // 256 KiB: more than any GPU has

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

// As hopper.cuh has it; one whose phase waits for threads, and for bytes.
struct Barrier {
    uint8_t expected, left;
    uint16_t phase;
    int bytes;
};
static_assert(sizeof(Barrier) == 8, "as on a GPU: shared memory is as large");

// What comes to a barrier once somebody waits there: copies, with the thread that made them, or with so many bytes.
struct Delivery {
    Barrier* barrier;
    std::vector<Copy> copies;
    int bytes;
};

struct Fiber {
    ucontext_t context;
    std::deque<std::vector<Copy>> groups{1}; // of copies that are under way; the last is still open
    std::deque<std::vector<std::function<void()>>> products{1}; // likewise
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool is_done = false;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    Meeting all;
    ucontext_t scheduler;
    std::function<void()> kernel;
    bool is_late; // copies and products are made when they have to be, and not at once
    std::vector<Delivery> deliveries;
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

// Nobody wrote behind the memory that a block shares.
inline void check_memory(int shared_bytes) {
    auto* memory = reinterpret_cast<const unsigned char*>(block_memory);
    auto is_written = [](unsigned char byte) { return byte != 0xff; };
    if (std::any_of(memory + shared_bytes, memory + sizeof block_memory, is_written)) {
        fprintf(stderr, "a block takes more than %d bytes of shared memory\n", shared_bytes);
        abort();
    }
}

inline void run_block(int threads, int shared_bytes) {
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
    check_memory(shared_bytes);
}

// All blocks of a grid, one after the other. Whoever does not wait for a copy is found out when copies are late,
// whoever does not wait for the readers before when they are not.
inline void launch(uint3 grid, int threads, int shared_bytes, bool is_late, std::function<void()> kernel) {
    gridDim = grid;
    for (int number = 0; number < grid.x * grid.y * grid.z; ++number) {
        Block of_threads;
        block = &of_threads;
        block->kernel = kernel;
        block->is_late = is_late;
        blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
        run_block(threads, shared_bytes);
    }
}

template <typename T>
T& shared_memory() {
    return *reinterpret_cast<T*>(block_memory);
}

inline void begin(Barrier& barrier, int expected) { barrier = {uint8_t(expected), uint8_t(expected), 0, 0}; }

// What a phase waits for becomes less, or for bytes more.
inline void come(Barrier& barrier, int threads, int bytes) {
    barrier.left -= threads, barrier.bytes += bytes;
    if (barrier.left > 0 || barrier.bytes != 0) return;
    barrier.left = barrier.expected;
    ++barrier.phase;
}

inline void arrive(Barrier& barrier) { come(barrier, 1, 0); }
inline void arrive_with_bytes(Barrier& barrier, int bytes) { come(barrier, 1, bytes); }

inline void deliver(const Delivery& delivery) {
    for (const Copy& copy : delivery.copies) copy.make();
    come(*delivery.barrier, delivery.bytes == 0, -delivery.bytes);
}

inline void send(const Delivery& delivery) {
    block->is_late ? block->deliveries.push_back(delivery) : deliver(delivery);
}

inline void arrive_with_copies(Barrier& barrier) {
    auto& groups = block->fibers[threadIdx.x].groups;
    Delivery delivery{&barrier, {}, 0};
    for (auto& group : groups) delivery.copies.insert(delivery.copies.end(), group.begin(), group.end());
    groups.assign(1, {});
    send(delivery);
}

inline void copy_all_later(void* to, const void* from, int bytes, Barrier& barrier) {
    Delivery delivery{&barrier, {}, bytes};
    for (int i = 0; i < bytes; i += 16)
        delivery.copies.push_back({static_cast<char*>(to) + i, static_cast<const char*>(from) + i, true});
    send(delivery);
}

inline void wait_for(Barrier& barrier, int phase) {
    int self = threadIdx.x;
    while (barrier.phase % 2 == (phase & 1)) {
        std::vector<Delivery> others;
        others.swap(block->deliveries);
        for (const Delivery& delivery : others)
            delivery.barrier == &barrier ? deliver(delivery) : block->deliveries.push_back(delivery);
        if (barrier.phase % 2 != (phase & 1)) return;
        swapcontext(&block->fibers[self].context, &block->scheduler);
        threadIdx.x = self;
    }
}

inline void see_copies() {}
template <int count>
inline void keep_registers() {}
template <int count>
inline void take_registers() {}

inline uint16_t bits_at(const void* row, int index) {
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
            return is_transposed ? bits_at(rows[8 * i + second + j], first) : bits_at(rows[8 * i + first], second + j);
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

inline unsigned rounded(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline unsigned pack(float low, float high) { return rounded(low) | rounded(high) << 16; }
inline float widen(uint16_t number) { return half_of(number, 0); }
inline float power_of_two(float x) { return std::exp2(x); }
inline float logarithm(float x) { return std::log2(x); }

struct Bf16 {
    static unsigned pack(float low, float high) { return ::pack(low, high); }
    static float widen(uint16_t number) { return ::widen(number); }
    static void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
};

struct F16 {
    static unsigned pack(float low, float high) {
        _Float16 both[2] = {_Float16(low), _Float16(high)};
        unsigned bits;
        memcpy(&bits, both, sizeof bits);
        return bits;
    }

    static float widen(uint16_t number) {
        _Float16 half;
        memcpy(&half, &number, sizeof half);
        return half;
    }

    static void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
};

// Of a warp; numbers are those of 16 bits that `Number` has.
template <typename Number>
inline void multiply_add_of(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto& fragments = block->fragments[warp()];
    unsigned own[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(fragments[lane()], own, sizeof own);
    wait_for_warp();
    auto half = [](unsigned both, int which) { return Number::widen(which ? both >> 16 : both); };
    // Where a lane keeps row r and column k of a, and row k and column n of b.
    auto of_a = [&](int r, int k) { return half(fragments[r % 8 * 4 + k % 8 / 2][r / 8 + k / 8 * 2], k % 2); };
    auto of_b = [&](int k, int n) { return half(fragments[n * 4 + k % 8 / 2][4 + k / 8], k % 2); };
    for (int e = 0; e < 4; ++e)
        for (int k = 0; k < 16; ++k)
            sum[e] += of_a(lane() / 4 + e / 2 * 8, k) * of_b(k, lane() % 4 * 2 + e % 2);
    wait_for_warp();
}

inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    multiply_add_of<Bf16>(sum, a, b0, b1);
}

inline void Bf16::multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    multiply_add_of<Bf16>(sum, a, b0, b1);
}

inline void F16::multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    multiply_add_of<F16>(sum, a, b0, b1);
}

// A matrix for the products of a warpgroup: where row r and column k are, both from 0, of which products sum over k.
struct Matrix {
    const void* start;
    int leading, stride;
    bool is_shuffled;

    uint16_t at(int r, int k) const {
        if (!is_shuffled) return in(r / 8 * stride + r % 8 * 16 + k / 8 * leading + k % 8 * 2);
        return in(r / 8 * stride + r % 8 * 128 + k * 2);
    }

    // The same where k is what rows are.
    uint16_t turned(int r, int k) const { return in(r / 64 * leading + k / 8 * stride + k % 8 * 128 + r % 64 * 2); }

private:
    // By how the hardware has it: of an address, three bits are turned over by three higher ones.
    uint16_t in(int offset) const {
        auto* memory = reinterpret_cast<const char*>(block_memory);
        int from = static_cast<const char*>(start) - memory + offset;
        return bits_at(memory + (is_shuffled ? from ^ (from >> 7 & 7) << 4 : from), 0);
    }
};

inline Matrix shuffled(const void* start, int leading, int stride) { return {start, leading, stride, true}; }
inline Matrix tiled(const void* start, int leading, int stride) { return {start, leading, stride, false}; }

inline void begin_products() {}
inline void close_products() { block->fibers[threadIdx.x].products.emplace_back(); }

template <int open>
inline void wait_for_products() {
    auto& groups = block->fibers[threadIdx.x].products;
    for (; groups.size() > open + 1; groups.pop_front())
        for (const auto& product : groups.front()) product();
}

template <int N>
inline void computed(float (&)[N][4]) {}

inline void later(std::function<void()> product) {
    block->is_late ? block->fibers[threadIdx.x].products.back().push_back(product) : product();
}

// The sums of this lane, of what `a` and `b` say of a row, or a column, and of what is summed over.
template <int N, typename A, typename B>
inline void sum_up(float (&sums)[N][4], bool is_more, A a, B b) {
    for (int n = 0; n < N; ++n)
        for (int e = 0; e < 4; ++e) {
            float sum = is_more ? sums[n][e] : 0;
            for (int k = 0; k < 16; ++k) sum += a(lane() / 4 + e / 2 * 8, k) * b(8 * n + lane() % 4 * 2 + e % 2, k);
            sums[n][e] = sum;
        }
}

template <typename Number, int N>
inline void multiply(Number, float (&sums)[N][4], Matrix a, Matrix b, bool is_more) {
    later([=, &sums] {
        int first = threadIdx.x / LANES % 4 * 16; // row of this warp
        sum_up(sums, is_more, [=](int r, int k) { return Number::widen(a.at(first + r, k)); },
               [=](int n, int k) { return Number::widen(b.at(n, k)); });
    });
}

template <int N>
inline void multiply(float (&sums)[N][4], const unsigned (&a)[4], Matrix b) {
    auto& fragments = block->fragments[warp()];
    memcpy(fragments[lane()], a, sizeof a);
    wait_for_warp();
    std::vector<unsigned> all(4 * LANES);
    for (int i = 0; i < 4 * LANES; ++i) all[i] = fragments[i / 4][i % 4];
    wait_for_warp();
    later([=, &sums, &a] {
        if (memcmp(a, &all[4 * lane()], sizeof a) != 0) {
            fprintf(stderr, "registers change while they are multiplied\n");
            abort();
        }
        auto of_a = [=](int r, int k) { return half_of(all[(r % 8 * 4 + k % 8 / 2) * 4 + r / 8 + k / 8 * 2], k % 2); };
        sum_up(sums, true, of_a, [=](int n, int k) { return widen(b.turned(n, k)); });
    });
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
