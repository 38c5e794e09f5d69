//! Kernels for GPUs, compiled for the host with fibers in place of threads, against what they stand for.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests, which clippy does not see
#![allow(unsafe_code)] // calls what a C++ compiler made

use std::process::Command;
use std::sync::{Mutex, OnceLock};

use candle_core::{DType, Device, Tensor};
use gstblockcascade::layers::attention::{Kv, attend};
use half::bf16;
use libloading::Library;

/// As `attention.cu` has them.
const PIECES: usize = 64;
const QUERIES: usize = 128;

#[repr(C)]
#[derive(Clone, Copy)]
struct Piece {
    k: *const bf16,
    v: *const bf16,
    end: i64,
}

#[repr(C)]
struct Arguments {
    q: *const bf16,
    out: *mut bf16,
    q_row: i64,
    queries: i32,
    keys: i32,
    scale: f32,
    last_bias: f32,
    pieces: [Piece; PIECES],
}

/// Some queries over keys in pieces.
struct Case {
    queries: usize,
    heads: usize,
    width: usize,
    pieces: &'static [usize],
    last_count: usize,
}

const fn case(
    queries: usize,
    heads: usize,
    width: usize,
    pieces: &'static [usize],
    last_count: usize,
) -> Case {
    Case { queries, heads, width, pieces, last_count }
}

/// Tiles that are full and that are not, keys that end with a tile and that do not, pieces shorter than a
/// tile and longer, of which one is empty.
const CASES: [Case; 6] = [
    case(1, 1, 32, &[1], 1),
    case(5, 3, 32, &[7], 9),
    case(130, 2, 64, &[64, 1, 0, 63], 1),
    case(128, 1, 128, &[65], 435),
    case(257, 2, 128, &[100, 37, 5], 1),
    case(40, 1, 128, &[192], 2),
];

#[test]
fn attention_is_the_plain_one() {
    for (number, case) in CASES.iter().enumerate() {
        let [q, k, v] = case.tensors();
        let keys = case.keys(&k, &v);
        let expected = attend(&q, &keys, case.last_count).unwrap();
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got = case.run(&bf16s(&q), case.heads * case.width, &keys);
        let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let difference = (got.to_f32() - expected).abs();
            assert!(
                difference <= 0.01 * largest,
                "case {number}: number {i} is {got}, expected {expected}"
            );
        }
    }
}

/// The rows of queries may lie among other numbers, as a product of several linears at once makes them.
#[test]
fn queries_may_be_apart() {
    let case = case(20, 2, 32, &[33], 1);
    let [q, k, v] = case.tensors();
    let (q, keys) = (bf16s(&q), case.keys(&k, &v));
    let row = case.heads * case.width;
    let filled = |row: &[bf16]| [row, &[bf16::NAN; 64]].concat();
    let apart: Vec<_> = q.chunks(row).flat_map(filled).collect();
    assert_eq!(case.run(&q, row, &keys), case.run(&apart, row + 64, &keys));
}

impl Case {
    /// In f32, of bf16's numbers.
    fn tensors(&self) -> [Tensor; 3] {
        let keys = self.pieces.iter().sum();
        [self.queries, keys, keys].map(|tokens| {
            let shape = (1, tokens, self.heads, self.width);
            let numbers = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
            numbers.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()
        })
    }

    fn keys(&self, k: &Tensor, v: &Tensor) -> Vec<Kv> {
        let mut start = 0;
        let piece = |&tokens: &usize| {
            let part = |x: &Tensor| x.narrow(1, start, tokens).unwrap();
            let kv = Kv { k: part(k), v: part(v) };
            start += tokens;
            kv
        };
        self.pieces.iter().map(piece).collect()
    }

    fn run(&self, q: &[bf16], q_row: usize, keys: &[Kv]) -> Vec<bf16> {
        let keys: Vec<_> = keys.iter().map(|kv| [bf16s(&kv.k), bf16s(&kv.v)]).collect();
        let mut pieces = [Piece { k: std::ptr::null(), v: std::ptr::null(), end: 0 }; PIECES];
        let mut end = 0;
        for (piece, ([k, v], tokens)) in pieces.iter_mut().zip(keys.iter().zip(self.pieces)) {
            end += *tokens;
            *piece = Piece { k: k.as_ptr(), v: v.as_ptr(), end: end as i64 };
        }
        let mut out = vec![bf16::NAN; self.queries * self.heads * self.width];
        let arguments = Arguments {
            q: q.as_ptr(),
            out: out.as_mut_ptr(),
            q_row: q_row as i64,
            queries: self.queries as i32,
            keys: end as i32,
            scale: std::f32::consts::LOG2_E / (self.width as f32).sqrt(),
            last_bias: (self.last_count as f32).log2(),
            pieces,
        };
        self.launch(&arguments, false);
        let soon = out.clone();
        out.fill(bf16::NAN);
        self.launch(&Arguments { out: out.as_mut_ptr(), ..arguments }, true);
        assert_eq!(out, soon, "a copy is not waited for");
        out
    }

    fn launch(&self, arguments: &Arguments, is_late: bool) {
        type Run = unsafe extern "C" fn(*const Arguments, i32, i32, i32, bool);
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(()); // the fibers are the library's
        let _alone = ONE_AT_A_TIME.lock().unwrap();
        let columns = self.queries.div_ceil(QUERIES);
        // SAFETY: this is how `attention.cpp` has it, and all that the arguments point to outlives the call.
        unsafe {
            let run = library("attention").get::<Run>(b"run_attention").unwrap();
            run(arguments, columns as i32, self.heads as i32, self.width as i32, is_late);
        }
    }
}

fn bf16s(x: &Tensor) -> Vec<bf16> {
    x.to_dtype(DType::BF16).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// `tests/kernels/NAME.cpp`, compiled for the host once.
fn library(name: &str) -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernel.so");
        let mut compiler = Command::new("c++");
        compiler.args(["-std=c++17", "-O2", "-Wall", "-Wno-unknown-pragmas", "-shared", "-fPIC"]);
        compiler.args(["-I", "src/device/kernels", "-I", "tests/kernels", "-o"]).arg(&file);
        let status = compiler.arg(format!("tests/kernels/{name}.cpp")).status().unwrap();
        assert!(status.success());
        // SAFETY: it does nothing when it is loaded.
        unsafe { Library::new(&file).unwrap() }
    })
}
