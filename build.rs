//! The commit and its date, for what gst-inspect-1.0 tells of the plugin; kernels for GPUs, where they are
//! wanted.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDER: &str = "src/device/kernels";
const KERNELS: [&str; 5] = ["attention", "attention_90", "convolution", "convolution_90", "rows"];
/// The oldest GPUs that compute in bf16; the driver compiles for newer ones.
const ARCHITECTURE: &str = "compute_80";
/// Of kernels whose name says so, for no other GPUs.
const HOPPER: &str = "compute_90a";

fn main() {
    // Otherwise any file that changes, documentation too, has the library built again.
    for path in ["build.rs", ".git/HEAD", ".git/refs", FOLDER] {
        println!("cargo::rerun-if-changed={path}");
    }
    gst_plugin_version_helper::info();
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        KERNELS.into_iter().for_each(compile);
    }
}

/// A kernel to the assembly that drivers take, for `include_str!`.
fn compile(kernel: &str) {
    let home = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().find_map(env::var_os);
    let nvcc = home.map_or(PathBuf::from("nvcc"), |home| Path::new(&home).join("bin/nvcc"));
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let architecture = if kernel.ends_with("_90") { HOPPER } else { ARCHITECTURE };
    let mut compiler = Command::new(nvcc);
    compiler.args([
        "-std=c++17",
        "-O3",
        "--ptx",
        "-arch",
        architecture,
        "--Werror",
        "all-warnings",
    ]);
    compiler.arg(format!("{FOLDER}/{kernel}.cu")).arg("-o").arg(out.join(format!("{kernel}.ptx")));
    match compiler.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("nvcc: {status}"),
        Err(error) => panic!("nvcc: {error}; ci/cuda-build.sh builds where there is none"),
    }
}
