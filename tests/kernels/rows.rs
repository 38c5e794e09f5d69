//! What is done to rows.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use gstblockcascade::device::arguments::{Rows, Start};
use gstblockcascade::layers::norm::{LayerNorm, RmsNorm, add_gated, rms_norm_silu};
use gstblockcascade::layers::rope::{Grid, Rope};
use half::bf16;

use crate::{address, assert_rounded, bf16s, compiled, randn, run, run_both_ways};

/// Frames, tokens, width: a lane a row, several, a warp, more than it has lanes for, and rows that leave some idle.
const SIZES: [[usize; 3]; 7] =
    [[1, 1, 8], [2, 5, 96], [5, 40, 16], [2, 9, 200], [3, 7, 264], [2, 8, 1536], [1, 9, 5120]];
const EPS: f32 = 1e-6;

fn rows(x: &[bf16], [frames, tokens, width]: [usize; 3]) -> Rows {
    Rows {
        x: address(x),
        rows: (frames * tokens) as i32,
        width: width as i32,
        of_frame: tokens as i32,
        eps: EPS,
        ..Rows::default()
    }
}

/// By a kernel that has whole rows.
fn by_row(arguments: Rows, function: &str) -> Vec<bf16> {
    started(arguments, &arguments.start(function).unwrap())
}

fn started(arguments: Rows, start: &Start) -> Vec<bf16> {
    let kernel = compiled("rows");
    run_both_ways((arguments.rows * arguments.width) as usize, |out, is_late| {
        run(&kernel, start, &Rows { out, ..arguments }, is_late);
    })
}

#[test]
fn norm_and_silu() {
    for size in SIZES {
        let (xs, gamma) = (randn(&size), randn(&size[2..]));
        let expected = rms_norm_silu(&xs, &gamma).unwrap().unwrap();
        let (xs, gamma) = (bf16s(&xs), bf16s(&gamma));
        let arguments = Rows { y: address(&gamma), ..rows(&xs, size) };
        assert_rounded(&by_row(arguments, "norm_silu"), &expected, &format!("{size:?}"));
    }
}

#[test]
fn a_norm() {
    for size @ [.., width] in SIZES {
        let (xs, weight) = (randn(&size), randn(&[width]));
        let vb = HashMap::from([("weight".to_owned(), weight.clone())]);
        let vb = VarBuilder::from_tensors(vb, DType::F32, &Device::Cpu);
        let expected = RmsNorm::new(width, EPS.into(), vb).unwrap().forward(&xs).unwrap();
        let (xs, weight) = (bf16s(&xs), bf16s(&weight));
        let arguments = Rows { y: address(&weight), ..rows(&xs, size) };
        assert_rounded(&by_row(arguments, "rms_norm"), &expected, &format!("{size:?}"));
    }
}

/// A pixel of zeros stays one.
#[test]
fn a_row_of_zeros_has_no_length() {
    let (xs, gamma) = ([bf16::ZERO; 16], [bf16::ONE; 16]);
    let arguments = Rows { y: address(&gamma), ..rows(&xs, [1, 1, 16]) };
    assert_eq!(by_row(arguments, "norm_silu"), xs);
}

#[test]
fn modulation() {
    for size @ [frames, _, width] in SIZES {
        // Far from zero, as a residual stream may be.
        let xs = (randn(&size) + 3.0).unwrap().to_dtype(DType::BF16).unwrap();
        let xs = xs.to_dtype(DType::F32).unwrap();
        let [scale, shift] = [(); 2].map(|()| randn(&[frames, 1, width]));
        let norm = norm(width);
        let expected = norm.modulated(&xs, &scale, &shift).unwrap();
        let xs = bf16s(&xs);
        // The tables of a frame lie among others, as those of a layer do.
        let (scale, shift) = (f32s(&scale), apart(&f32s(&shift), width));
        let (a_row, b_row) = (width as i64, 2 * width as i64);
        let (a, b) = (address(&scale), address(&shift));
        let arguments = Rows { a, b, a_row, b_row, ..rows(&xs, size) };
        assert_rounded(&by_row(arguments, "modulate"), &expected, &format!("{size:?}"));
    }
}

#[test]
fn a_gate() {
    for size @ [frames, _, width] in SIZES {
        let (xs, ys, gate) = (randn(&size), randn(&size), randn(&[frames, 1, width]));
        let expected = add_gated(&xs, &ys, &gate).unwrap();
        let (xs, ys, gate) = (bf16s(&xs), bf16s(&ys), apart(&f32s(&gate), width));
        let (y, a, a_row) = (address(&ys), address(&gate), 2 * width as i64);
        let arguments = Rows { y, a, a_row, ..rows(&xs, size) };
        assert_rounded(
            &started(arguments, &arguments.start_by_chunk("gate")),
            &expected,
            &format!("{size:?}"),
        );
    }
}

#[test]
fn norm_and_rotation() {
    for (heads, head) in [(3, 32), (2, 128), (12, 128)] {
        let (grid, width) = (Grid { rows: 2, cols: 3 }, heads * head);
        let size = [2, grid.tokens(), width];
        let (xs, weight) = (randn(&size), randn(&[width]));
        let rotation = Rope::new(head).rotation(5, 2, grid, &Device::Cpu).unwrap();
        let vb = HashMap::from([("weight".to_owned(), weight.clone())]);
        let vb = VarBuilder::from_tensors(vb, DType::F32, &Device::Cpu);
        let norm = RmsNorm::new(width, EPS.into(), vb).unwrap();
        let expected = norm.forward_rotated(&xs, heads, &rotation).unwrap();
        let (xs, weight) = (bf16s(&xs), bf16s(&weight));
        let (cos, sin) = rotation.tables();
        let (cos, sin) = (f32s(cos), f32s(sin));
        let (a, b, row) = (address(&cos), address(&sin), head as i64 / 2);
        let tables = Rows { a, b, a_row: row, b_row: row, ..rows(&xs, size) };
        let arguments = Rows { y: address(&weight), turned: row as i32, ..tables };
        assert_rounded(
            &by_row(arguments, "norm_rotate"),
            &expected,
            &format!("{heads} heads of {head}"),
        );
    }
}

fn norm(width: usize) -> LayerNorm {
    let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    LayerNorm::plain(width, EPS.into(), &vb).unwrap()
}

fn f32s(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Rows with as many other numbers behind each.
fn apart(rows: &[f32], width: usize) -> Vec<f32> {
    rows.chunks(width).flat_map(|row| [row, &vec![f32::NAN; width]].concat()).collect()
}
