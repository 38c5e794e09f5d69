//! CUDA's libraries, looked for when a device is asked for, and not when the program starts.
//!
//! candle binds itself to them as any program does, and what is bound to a library cannot be loaded where
//! it is missing: GStreamer would blacklist the plugin on every machine without a GPU. So each function
//! that candle calls, or that our products call, is defined here, as a jump to where a table says; [`load`]
//! fills the table. Nothing calls them earlier, for all that they work on comes from a device that was opened.
//! The other way, a second library with an interface in C that is opened for GPUs, would put that interface
//! between everything that a prompt and a frame are.
#![allow(unsafe_code)] // opening libraries runs what they run when they are opened

use std::arch::global_asm;
use std::error::Error;
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use once_cell::sync::OnceCell;

use crate::device::Unavailable;

/// Where CUDA is told to be; with folders below in which its libraries are.
const HOMES: [&str; 3] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];
const USUAL_HOME: &str = "/usr/local/cuda";
const FOLDERS: [&str; 2] = ["lib64", "lib"];

/// Finds all libraries and their functions, once in a process.
pub fn load() -> Result<(), Unavailable> {
    static LOADED: OnceCell<()> = OnceCell::new();
    LOADED.get_or_try_init(bind_all).copied()
}

/// By the system's rules, else below a home of CUDA's.
fn open(file: &str) -> Result<Library, Unavailable> {
    let homes = HOMES.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let homes = homes.chain([PathBuf::from(USUAL_HOME)]);
    let mut below = homes.flat_map(|home| FOLDERS.map(|folder| home.join(folder).join(file)));
    // The first failure says most: of a library that is there, but lacks another.
    opened(Path::new(file)).or_else(|error| {
        below.find_map(|path| opened(&path).ok()).ok_or_else(|| missing(file, &error))
    })
}

fn opened(path: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: what NVIDIA's libraries do when they are loaded is what any program that is linked with them
    // has done. Global: the others of them find it by its name.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
}

/// Puts its functions into the table; it stays loaded.
fn bind(file: &str, functions: &[(&str, &AtomicPtr<c_void>)]) -> Result<(), Unavailable> {
    let library = open(file)?;
    for (name, place) in functions {
        // SAFETY: it is only looked where the function is.
        let found = unsafe { library.get::<*mut c_void>(name.as_bytes()) };
        let found = found.map_err(|error| missing(file, &error))?;
        place.store(found.into_raw(), Ordering::Release);
    }
    std::mem::forget(library);
    Ok(())
}

/// What the system said is behind what the library says.
fn missing(file: &str, error: &libloading::Error) -> Unavailable {
    let reason = error.source().map_or_else(|| error.to_string(), |cause| cause.to_string());
    Unavailable::NoLibrary { file: file.to_owned(), reason }
}

/// What stands in the table before [`load`], and for what is never bound: the number of an error.
extern "C" fn absent() -> c_int {
    const NOT_INITIALIZED: c_int = 3;
    NOT_INITIALIZED
}

/// Defines the functions of each library, and the table of where they are.
macro_rules! libraries {
    ($($file:literal: $($function:ident)*;)*) => {
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy)]
        enum Place {
            $($($function,)*)*
        }

        const COUNT: usize = [$($(Place::$function,)*)*].len();

        static TABLE: [AtomicPtr<c_void>; COUNT] =
            [const { AtomicPtr::new(absent as *mut c_void) }; COUNT];

        fn bind_all() -> Result<(), Unavailable> {
            $(bind($file, &[$((stringify!($function), &TABLE[Place::$function as usize])),*])?;)*
            Ok(())
        }

        $($(define!($function);)*)*
    };
}

/// Jumps to where the table says, with all registers that have arguments as they are.
#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    () => {
        "jmp qword ptr [rip + {table} + {place}]"
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    () => {
        "adrp x16, {table} + {place}
         ldr x16, [x16, :lo12:{table} + {place}]
         br x16"
    };
}

/// A function that does so.
macro_rules! define {
    ($function:ident) => {
        global_asm!(
            concat!(".globl ", stringify!($function)),
            concat!(".hidden ", stringify!($function)),
            concat!(".type ", stringify!($function), ", @function"),
            concat!(stringify!($function), ":"),
            jump!(),
            table = sym TABLE,
            place = const Place::$function as usize * size_of::<usize>(),
        );
    };
}

/// Kernels of candle's for quantised weights, which nothing here has: without them the program needs
/// neither their code nor CUDA's runtime library.
macro_rules! unused {
    ($($function:ident)*) => {
        $(global_asm!(
            concat!(".globl ", stringify!($function)),
            concat!(".hidden ", stringify!($function)),
            concat!(".set ", stringify!($function), ", {absent}"),
            absent = sym absent,
        );)*
    };
}

libraries! {
    "libcuda.so.1":
        cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent cuCtxSynchronize cuDeviceCanAccessPeer
        cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount cuDeviceGetDefaultMemPool cuDeviceGetName
        cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDriverGetVersion cuEventCreate
        cuEventDestroy_v2 cuEventRecord cuFuncSetAttribute cuGetErrorString cuInit
        cuLaunchKernel cuMemAllocAsync cuMemAlloc_v2 cuMemFreeAsync cuMemFree_v2 cuMemGetInfo_v2
        cuMemPoolGetAttribute cuMemPoolSetAccess cuMemPoolSetAttribute cuMemPoolTrimTo
        cuMemcpyDtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuMemcpyPeerAsync
        cuMemsetD8Async cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleUnload
        cuStreamCreate cuStreamDestroy_v2 cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent;
    // Before cuBLAS, which wants it.
    "libcublasLt.so.13":
        cublasLtCreate cublasLtDestroy cublasLtMatmul cublasLtMatmulAlgoGetHeuristic
        cublasLtMatmulDescCreate cublasLtMatmulDescDestroy cublasLtMatmulDescSetAttribute
        cublasLtMatmulPreferenceCreate cublasLtMatmulPreferenceDestroy
        cublasLtMatmulPreferenceSetAttribute cublasLtMatrixLayoutCreate cublasLtMatrixLayoutDestroy;
    "libcublas.so.13":
        cublasCreate_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasGemmStridedBatchedEx
        cublasSetStream_v2;
    "libcurand.so.10":
        curandCreateGenerator curandDestroyGenerator curandGenerateNormal
        curandGenerateNormalDouble curandSetPseudoRandomGeneratorSeed curandSetStream;
}

unused! {
    launch_mmq_gguf_q2_k launch_mmq_gguf_q3_k launch_mmq_gguf_q4_0 launch_mmq_gguf_q4_1
    launch_mmq_gguf_q4_k launch_mmq_gguf_q5_0 launch_mmq_gguf_q5_1 launch_mmq_gguf_q5_k
    launch_mmq_gguf_q6_k launch_mmq_gguf_q8_0 launch_mmq_quantize_q8_1_D2S6
    launch_mmq_quantize_q8_1_D4 launch_mmq_quantize_q8_1_DS4 launch_mmvq_gguf_q2_k_bf16_plain
    launch_mmvq_gguf_q2_k_f16_plain launch_mmvq_gguf_q2_k_f32_plain
    launch_mmvq_gguf_q3_k_bf16_plain launch_mmvq_gguf_q3_k_f16_plain
    launch_mmvq_gguf_q3_k_f32_plain launch_mmvq_gguf_q4_0_bf16_plain
    launch_mmvq_gguf_q4_0_f16_plain launch_mmvq_gguf_q4_0_f32_plain
    launch_mmvq_gguf_q4_1_bf16_plain launch_mmvq_gguf_q4_1_f16_plain
    launch_mmvq_gguf_q4_1_f32_plain launch_mmvq_gguf_q4_k_bf16_plain
    launch_mmvq_gguf_q4_k_f16_plain launch_mmvq_gguf_q4_k_f32_plain
    launch_mmvq_gguf_q5_0_bf16_plain launch_mmvq_gguf_q5_0_f16_plain
    launch_mmvq_gguf_q5_0_f32_plain launch_mmvq_gguf_q5_1_bf16_plain
    launch_mmvq_gguf_q5_1_f16_plain launch_mmvq_gguf_q5_1_f32_plain
    launch_mmvq_gguf_q5_k_bf16_plain launch_mmvq_gguf_q5_k_f16_plain
    launch_mmvq_gguf_q5_k_f32_plain launch_mmvq_gguf_q6_k_bf16_plain
    launch_mmvq_gguf_q6_k_f16_plain launch_mmvq_gguf_q6_k_f32_plain
    launch_mmvq_gguf_q8_0_bf16_plain launch_mmvq_gguf_q8_0_f16_plain
    launch_mmvq_gguf_q8_0_f32_plain launch_mmvq_gguf_quantize_q8_1_bf16
    launch_mmvq_gguf_quantize_q8_1_f16 launch_mmvq_gguf_quantize_q8_1_f32 moe_gemm_gguf
    moe_gemm_gguf_prefill moe_gemm_wmma
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let error = open("libcuda-of-nobody.so.7").unwrap_err();
        let Unavailable::NoLibrary { file, reason } = &error else { panic!("{error}") };
        assert_eq!(file, "libcuda-of-nobody.so.7");
        assert!(reason.contains("cannot open shared object file"), "{reason}");
    }
}
