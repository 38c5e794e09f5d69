// What the kernels of attention.cu and attention_90.cu are told.
#pragma once

#include "warp.cuh"

constexpr int PIECES = 64;
constexpr int CHUNK = 8; // numbers of 16 bytes

typedef unsigned short bf16;

// Keys and values of some tokens, `(tokens, heads, width)`; `end` is the number of tokens up to here, of all.
struct Piece {
    const bf16* k;
    const bf16* v;
    long long end;
};

// As device/arguments/attention.rs has it.
struct Arguments {
    const bf16* q; // (queries, heads, width), `q_row` numbers from token to token
    bf16* out;     // (queries, heads, width), contiguous
    // Of attention_90.cu, or null: of each part of the keys as out, and behind all of those a number a row; and the
    // same of other keys, which were there before.
    float* parts;
    const float* earlier;
    long long q_row;
    int queries;
    int heads;
    int keys;
    int key_parts; // of attention_90.cu: each block of threads has one
    int earlier_parts;
    float scale;     // of scores, for powers of two
    float last_bias; // of the last key's, likewise
    Piece pieces[PIECES];
};
static_assert(sizeof(Arguments) == 72 + PIECES * 24, "as Rust lays it out");
