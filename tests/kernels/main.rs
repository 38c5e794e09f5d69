//! Kernels for GPUs, compiled for the host with fibers in place of threads, against what they stand for.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests, which clippy does not see
#![allow(unsafe_code)] // calls what a C++ compiler made

mod attention;
mod convolution;
mod rows;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, WithDType};
use gstblockcascade::device::arguments::Start;
use half::{bf16, f16};
use libloading::Library;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// A file of kernels, compiled for the host. Not for two threads at once: its fibers are one's, so that
/// everybody gets a library of their own; but it is compiled once.
fn compiled(name: &'static str) -> Library {
    static LIBRARIES: Mutex<BTreeMap<&str, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let file = tempfile::Builder::new().suffix(".so").tempfile().unwrap();
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    fs::write(&file, libraries.entry(name).or_insert_with(|| library(name))).unwrap();
    // SAFETY: it does nothing when it is loaded.
    unsafe { Library::new(file.path()).unwrap() }
}

fn library(name: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [source, file] = ["kernel.cpp", "kernel.so"].map(|name| folder.path().join(name));
    fs::write(&source, format!("#include \"{name}.cu\"\n#include \"run.h\"\n")).unwrap();
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O2", "-Wall", "-Wno-unknown-pragmas", "-shared", "-fPIC"]);
    compiler.args(["-I", "src/device/kernels", "-I", "tests/kernels", "-o"]).arg(&file);
    let status = compiler.arg(&source).status().unwrap();
    assert!(status.success());
    fs::read(&file).unwrap()
}

/// Runs the kernel, with copies that arrive at once or late.
fn run<A>(kernels: &Library, start: &Start, arguments: &A, is_late: bool) {
    type Kernel = unsafe extern "C" fn();
    type Run<A> = unsafe extern "C" fn(Kernel, *const A, *const i32, i32, i32, bool);
    let grid = start.grid.map(|blocks| blocks as i32);
    let (threads, shared_bytes) = (start.threads as i32, start.shared_bytes as i32);
    // SAFETY: so `run.h` has it, and all that the arguments point to outlives the call.
    unsafe {
        let kernel = kernels.get::<Kernel>(start.function.as_bytes()).unwrap();
        let run = kernels.get::<Run<A>>(b"run_kernel").unwrap();
        run(*kernel, arguments, grid.as_ptr(), threads, shared_bytes, is_late);
    }
}

/// Normal numbers as bf16 has them, in f32: the same in every run of a test, which has a thread of its own.
fn randn(shape: &[usize]) -> Tensor {
    thread_local! {
        static RNG: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(7));
    }
    let number = |_| RNG.with_borrow_mut(|rng| StandardNormal.sample(rng));
    let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
    let numbers = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
    numbers.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()
}

fn address<T>(numbers: &[T]) -> u64 {
    numbers.as_ptr() as u64
}

/// Of 16 bits.
trait Number: WithDType + Debug + Into<f32> {
    const NAN: Self;
}

impl Number for bf16 {
    const NAN: Self = bf16::NAN;
}

impl Number for f16 {
    const NAN: Self = f16::NAN;
}

fn numbers<T: Number>(x: &Tensor) -> Vec<T> {
    x.to_dtype(T::DTYPE).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bf16s(x: &Tensor) -> Vec<bf16> {
    numbers(x)
}

/// Each number but for its own rounding: of sums of a few numbers in f32.
fn assert_rounded(got: &[bf16], expected: &Tensor, what: &str) {
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let difference = (got.to_f32() - expected).abs();
        let bound = expected.abs() / 256.0 + 1e-4;
        assert!(difference <= bound, "{what}: number {i} is {got}, expected {expected}");
    }
}

/// A hundredth of the largest is what bf16 leaves to chance.
fn assert_close<T: Number>(got: &[T], expected: &Tensor, what: &str) {
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let got: f32 = (*got).into();
        let difference = (got - expected).abs();
        assert!(difference <= 0.01 * largest, "{what}: number {i} is {got}, expected {expected}");
    }
}

/// Runs a kernel with copies that arrive at once, and with late ones: the result must be the same.
fn run_both_ways<T: Number>(len: usize, run: impl Fn(u64, bool)) -> Vec<T> {
    let [soon, late] = [false, true].map(|is_late| {
        let mut out = vec![T::NAN; len];
        run(out.as_mut_ptr() as u64, is_late);
        out
    });
    assert_eq!(soon, late, "a copy is not waited for");
    soon
}
