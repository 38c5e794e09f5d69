//! Contiguous f32 tensors on the CPU: their slices, a checked matrix product and fused row loops.
//!
//! Loops are plain Rust, compiled once for each instruction set by [`pulp::Arch`] and shared among
//! the threads of rayon's pool. A row is the channels of one pixel.

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use gemm::Parallelism;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Numbers one task of a row loop works on: 256 KiB in and as much out stay in a core's L2.
const TASK_LEN: usize = 1 << 16;

/// Smallest norm a pixel is divided by, as in `torch.nn.functional.normalize`.
const MIN_NORM: f32 = 1e-12;

/// Whether tensors of this device and dtype can take the paths of this file.
pub fn serves(device: &Device, dtype: DType) -> bool {
    device.is_cpu() && dtype == DType::F32
}

/// Lends the numbers of `xs`, row-major, to `f`; copies them first where they are not contiguous.
pub fn with_slice<R>(xs: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let xs = xs.contiguous()?;
    let (storage, layout) = xs.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("expected a tensor on the cpu, got {:?}", xs.device().location())
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => f(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// A matrix in a slice: rows of contiguous numbers, `stride` apart; rows may overlap.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// The view of `rows` rows of `cols` numbers; an error where the last row leaves `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        let end = rows.checked_sub(1).and_then(|last| last.checked_mul(stride)?.checked_add(cols));
        match end {
            Some(end) if end > data.len() || isize::try_from(end).is_err() => {
                bail!("{rows} rows of {cols}, {stride} apart, need {end}, got {}", data.len())
            }
            None if rows > 0 => bail!("{rows} rows of {cols}, {stride} apart, overflow"),
            _ => Ok(Self { data, rows, cols, stride }),
        }
    }
}

/// `dst += lhs · rhs` on the calling thread; `dst` is row-major, `(lhs rows, rhs cols)`.
#[allow(unsafe_code)] // gemm takes pointers only
pub fn add_matmul(dst: &mut [f32], lhs: Rows<'_>, rhs: Rows<'_>) -> Result<()> {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    if rhs.rows != k || m.checked_mul(n) != Some(dst.len()) {
        bail!("({m}, {k}) times ({}, {n}) does not fill {} numbers", rhs.rows, dst.len())
    }
    // SAFETY: every address is inside its slice. `Rows::new` proved that row `rows - 1` of `lhs` and
    // of `rhs` ends inside its data, and strides are not negative, so that earlier rows do too;
    // `dst` holds exactly m rows of n, borrowed exclusively, hence disjoint from both inputs.
    // f32 has no invalid bit patterns, and strides fit isize because the slices do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            /* dst_cs */ 1,
            /* dst_rs */ n as isize,
            /* read_dst */ true,
            lhs.data.as_ptr(),
            /* lhs_cs */ 1,
            /* lhs_rs */ lhs.stride as isize,
            rhs.data.as_ptr(),
            /* rhs_cs */ 1,
            /* rhs_rs */ rhs.stride as isize,
            /* alpha, of dst */ 1.0,
            /* beta, of the product */ 1.0,
            /* conj_dst */ false,
            /* conj_lhs */ false,
            /* conj_rhs */ false,
            Parallelism::None,
        );
    }
    Ok(())
}

/// `silu(x / max(|x|, 1e-12) * sqrt(channels) * gamma)` over the last dimension of `xs`; `gamma` is
/// `(channels,)`. Reads and writes memory once.
pub fn rms_norm_silu(xs: &Tensor, gamma: &Tensor) -> Result<Tensor> {
    let channels = gamma.elem_count();
    if xs.dims().last() != Some(&channels) || channels == 0 {
        bail!("expected {channels} channels last, got {:?}", xs.shape())
    }
    with_slice(gamma, |gamma| {
        let task_len = TASK_LEN.next_multiple_of(channels);
        map_tasks(xs, task_len, |src, dst| Arch::new().dispatch(NormSilu { src, dst, gamma }))
    })
}

/// A new tensor whose runs of `task_len` numbers are each `f` of the same run of `xs`.
fn map_tasks(
    xs: &Tensor,
    task_len: usize,
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Result<Tensor> {
    let ys = with_slice(xs, |xs| {
        let mut ys = vec![0f32; xs.len()];
        ys.par_chunks_mut(task_len).zip(xs.par_chunks(task_len)).for_each(|(dst, src)| f(src, dst));
        Ok(ys)
    })?;
    Tensor::from_vec(ys, xs.shape(), xs.device())
}

/// A run of pixels to normalise; a type and not a closure, so that it is sure to be inlined into the
/// code for each instruction set.
struct NormSilu<'a> {
    src: &'a [f32],
    dst: &'a mut [f32],
    gamma: &'a [f32],
}

impl WithSimd for NormSilu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let channels = self.gamma.len();
        let root = (channels as f32).sqrt();
        let pixels = self.src.chunks_exact(channels).zip(self.dst.chunks_exact_mut(channels));
        for (x, y) in pixels {
            let scale = root / sum_of_squares(x).sqrt().max(MIN_NORM);
            for ((y, &x), &gamma) in y.iter_mut().zip(x).zip(self.gamma) {
                *y = silu(x * scale * gamma);
            }
        }
    }
}

/// Sixteen partial sums, so that the loop has no dependency between neighbours.
#[inline(always)]
fn sum_of_squares(xs: &[f32]) -> f32 {
    let (chunks, rest) = xs.as_chunks::<16>();
    let mut lanes = [0f32; 16];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&x| x * x).sum::<f32>()
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `e^x` to about 1e-7 relative, without branches; saturates beyond ±87.
///
/// `e^x = 2^n · e^r` with integer `n` and `|r| <= ln(2) / 2`; the second factor is its Taylor sum.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding it leaves the rounded integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2`, split so that `n` times the first part is exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let mut sum = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + term;
    }
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()));
    sum * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_roundings() {
        for i in -870..=870 {
            let x = i as f32 * 0.1;
            let expected = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(relative < 3e-7, "exp({x}): {} expected {expected}, off {relative}", exp(x));
        }
        assert!(exp(-1e4) < 1e-37 && exp(1e4).is_finite());
    }

    #[test]
    fn rows_must_fit_their_slice() {
        let data = [0f32; 10];
        assert!(Rows::new(&data, 4, 4, 2).is_ok());
        assert!(Rows::new(&data, 5, 4, 2).is_err());
        assert!(Rows::new(&data, 2, 4, usize::MAX).is_err());
        assert!(Rows::new(&data, 0, 4, 2).is_ok());
    }

    #[test]
    fn matmul_reads_overlapping_rows_and_adds() -> Result<()> {
        let lhs = [1., 2., 3.];
        let rhs = [10., 100., 1000., 10000.];
        let mut dst = [1., 1., 1., 1.];
        add_matmul(&mut dst, Rows::new(&lhs, 2, 2, 1)?, Rows::new(&rhs, 2, 2, 2)?)?;
        assert_eq!(dst, [2011., 20101., 3021., 30201.]);
        assert!(
            add_matmul(&mut dst[1..], Rows::new(&lhs, 2, 2, 1)?, Rows::new(&rhs, 2, 2, 2)?)
                .is_err()
        );
        Ok(())
    }

    #[test]
    fn norm_silu_of_a_hand_sized_pixel() -> Result<()> {
        let xs = Tensor::new(&[[3f32, 4.], [0., 0.]], &Device::Cpu)?;
        let gamma = Tensor::new(&[1f32, -0.5], &Device::Cpu)?;
        let ys = rms_norm_silu(&xs, &gamma)?.to_vec2::<f32>()?;
        let silu = |x: f64| x / (1. + (-x).exp());
        let expected = [silu(0.6 * 2f64.sqrt()), silu(-0.4 * 2f64.sqrt())];
        for (y, e) in ys[0].iter().zip(expected) {
            assert!((f64::from(*y) - e).abs() < 1e-6, "{y} expected {e}");
        }
        assert_eq!(ys[1], [0., 0.]);
        assert!(rms_norm_silu(&xs, &gamma.narrow(0, 0, 1)?).is_err());
        Ok(())
    }
}
