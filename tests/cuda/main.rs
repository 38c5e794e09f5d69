//! Machines without a GPU, or with one that cannot be used: libraries that say so stand in for CUDA's. On a machine
//! with a GPU, `--ignored` compares its kernels with the CPU.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests, which clippy does not see

use std::path::Path;
use std::process::{Command, Output};

mod kernels;
mod workers;

/// Where the program names the functions that it looks for.
const DELAYED: &str = include_str!("../../src/device/cuda/delayed.rs");

/// What a driver answers.
struct Driver {
    /// As CUDA writes it: 12040 is 12.4.
    version: u32,
    devices: u32,
}

#[test]
fn without_a_driver_it_is_named() {
    if Path::new("/dev/nvidiactl").exists() {
        return; // it has one
    }
    let folder = tempfile::tempdir().unwrap();
    let error = refused("cuda:0", folder.path());
    assert!(
        error.contains("device cuda:0: libcuda.so.1 cannot be used: libcuda.so.1: "),
        "{error}"
    );
    assert!(error.contains("expected NVIDIA's driver"), "{error}");
}

#[test]
fn a_library_that_lacks_a_function_is_named_with_it() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &Driver { version: 13_000, devices: 1 });
    compile(&folder.path().join("libcublas.so.13"), "");
    let error = refused("cuda:0", folder.path());
    assert!(error.contains("libcublas.so.13 cannot be used"), "{error}");
    assert!(error.contains("undefined symbol: cublasCreate_v2"), "{error}");
}

#[test]
fn an_old_driver_is_told_from_none() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &Driver { version: 12_040, devices: 1 });
    let error = refused("cuda:0", folder.path());
    let expected = "the driver is too old: it supports CUDA 12.4, expected 13.0 or later";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_told_with_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &Driver { version: 13_000, devices: 2 });
    let error = refused("cuda:2", folder.path());
    assert!(error.contains("device cuda:2: no such device: got number 2, there are 2"), "{error}");
}

#[test]
fn a_device_that_refuses_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &Driver { version: 13_000, devices: 1 });
    let error = refused("cuda:0", folder.path());
    assert!(error.contains("error: device cuda:0: "), "{error}");
    assert!(!error.contains("panicked"), "{error}");
}

#[test]
fn where_no_gpu_can_be_used_auto_is_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    for driver in [Driver { version: 13_000, devices: 0 }, Driver { version: 12_040, devices: 1 }] {
        make(folder.path(), &driver);
        let output = generate("auto", folder.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Stands in for all of CUDA.
fn make(folder: &Path, driver: &Driver) {
    for (file, functions) in libraries() {
        let body = |function: &&str| match *function {
            "cuInit" => "int cuInit(unsigned flags) { return 0; }\n".to_owned(),
            "cuDriverGetVersion" => {
                format!(
                    "int cuDriverGetVersion(int *to) {{ *to = {}; return 0; }}\n",
                    driver.version
                )
            }
            "cuDeviceGetCount" => {
                format!("int cuDeviceGetCount(int *to) {{ *to = {}; return 0; }}\n", driver.devices)
            }
            other => format!("int {other}(void) {{ return 2; }}\n"), // out of memory
        };
        compile(&folder.join(file), &functions.iter().map(body).collect::<String>());
    }
}

/// Each library, and its functions that the program uses.
fn libraries() -> Vec<(&'static str, Vec<&'static str>)> {
    let (_, list) = DELAYED.split_once("libraries! {\n").unwrap();
    let (list, _) = list.split_once("\n}").unwrap();
    let lines = list.lines().filter(|line| !line.trim_start().starts_with("//"));
    let list: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    let mut libraries: Vec<(&str, Vec<&str>)> = Vec::new();
    for word in list {
        match (word.strip_prefix('"'), libraries.last_mut()) {
            (Some(file), _) => libraries.push((file.trim_end_matches("\":"), Vec::new())),
            (None, Some((_, functions))) => functions.push(word.trim_end_matches(';')),
            (None, None) => panic!("{word} belongs to no library"),
        }
    }
    libraries.iter_mut().for_each(|(_, functions)| functions.retain(|name| !name.is_empty()));
    assert!(libraries.iter().any(|(_, functions)| functions.contains(&"cuInit")));
    libraries
}

fn compile(library: &Path, source: &str) {
    let file = library.with_extension("c");
    std::fs::write(&file, source).unwrap();
    let mut compiler = Command::new("cc");
    let status = compiler.arg("-shared").arg("-fPIC").arg("-o").arg(library).arg(&file).status();
    assert!(status.unwrap().success(), "{}", file.display());
}

/// What the program says that it cannot do.
fn refused(device: &str, libraries: &Path) -> String {
    let output = generate(device, libraries);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

fn generate(device: &str, libraries: &Path) -> Output {
    let film = libraries.join("film.y4m");
    let mut program = Command::new(env!("CARGO_BIN_EXE_blockcascade"));
    program
        .args(["generate", "a ball", "--frames", "1", "--force", "--device", device, "--output"]);
    program.arg(film).env("LD_LIBRARY_PATH", libraries).output().unwrap()
}
