//! The kernels on a GPU, in sizes that networks have, against the CPU's f32 on the same numbers.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use gstblockcascade::device::{self, DeviceSpec};
use gstblockcascade::layers::attention::{Begun, Kv, attend};
use gstblockcascade::layers::conv::{Activation, Conv, Geometry};
use gstblockcascade::layers::linear::Linear;
use gstblockcascade::layers::norm::{LayerNorm, RmsNorm, add_gated};
use gstblockcascade::layers::rope::{Grid, Rope};

const DIM: usize = 1536;
const HEADS: usize = 12;
const HEAD: usize = DIM / HEADS;
const EPS: f64 = 1e-6;

fn gpu() -> Device {
    DeviceSpec::Cuda(0).open().unwrap()
}

/// Normal numbers as bf16 has them, in f32 on the CPU.
fn randn(shape: &[usize]) -> Tensor {
    let numbers = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
    numbers.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()
}

fn there(x: &Tensor) -> Tensor {
    there_as(x, DType::BF16)
}

fn there_as(x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).unwrap().to_device(&gpu()).unwrap()
}

fn assert_close(got: &Tensor, expected: &Tensor) {
    let got = got.to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap();
    assert_eq!(got.dims(), expected.dims());
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let (difference, scale) = (largest(&(got - expected).unwrap()), largest(expected));
    eprintln!("differs by {difference:.2e} at most, of {scale:.2e}");
    assert!(difference <= 0.01 * scale);
}

#[test]
#[ignore = "needs a GPU"]
fn attention_over_pieces() {
    let cases = [
        (HEAD, 300, vec![1560, 1560, 77], 1),
        (HEAD, 64, vec![78], 435),
        (HEAD, 200, vec![3120], 1),
        (HEAD, 40, vec![3; 70], 1), // more than a kernel takes
        (64, 130, vec![100, 300], 1),
        (32, 130, vec![100, 300], 9),
    ];
    for (head, queries, pieces, last_count) in cases {
        let tokens = |count| randn(&[1, count, HEADS, head]);
        let kv = |count| Kv { k: tokens(count), v: tokens(count) };
        let (q, keys) = (tokens(queries), pieces.into_iter().map(kv).collect::<Vec<_>>());
        let expected = attend(&q, &keys, last_count).unwrap();
        let keys: Vec<_> = keys.iter().map(|kv| Kv { k: there(&kv.k), v: there(&kv.v) }).collect();
        assert_close(&attend(&there(&q), &keys, last_count).unwrap(), &expected);
    }
}

/// The others on another stream, with as many parts as either needs.
#[test]
#[ignore = "needs a GPU"]
fn attention_to_keys_that_come_later() {
    let (here, beside) = (gpu(), device::beside(&gpu()).unwrap());
    for (head, queries, pieces, known) in [
        (HEAD, 4680, vec![4680, 4680, 4680], 2),
        (HEAD, 300, vec![1560, 1560, 77], 1),
        (HEAD, 300, vec![1560], 1),
        (64, 130, vec![100, 300], 1), // of a kernel that takes all at once
    ] {
        let tokens = |count| randn(&[1, count, 2, head]);
        let kv = |count| Kv { k: tokens(count), v: tokens(count) };
        let (q, keys) = (tokens(queries), pieces.into_iter().map(kv).collect::<Vec<_>>());
        let expected = attend(&q, &keys, 1).unwrap();
        let on = |kv: &Kv, device: &Device| {
            let there = |x: &Tensor| device::moved(&there(x), device).unwrap();
            Kv { k: there(&kv.k), v: there(&kv.v) }
        };
        let first = keys[..known].iter().map(|kv| on(kv, &here)).collect();
        let rest: Vec<_> = keys[known..].iter().map(|kv| on(kv, &beside)).collect();
        let begun = Begun::new(&there(&q), first).unwrap();
        assert_close(&begun.finish(&rest).unwrap(), &expected);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn convolutions_of_the_decoders() {
    let same = Geometry::same(3);
    for (kernel, geometry) in [
        ([96, 96, 3, 3, 3], same.causal(3)),
        ([192, 384, 1, 3, 3], Geometry { enlarge: 2, ..same }),
        ([768, 384, 3, 1, 1], Geometry::POINTWISE.causal(3)),
        ([3, 96, 3, 3, 3], same.causal(3)),
        ([256, 16, 1, 3, 3], same),
        ([64, 64, 1, 3, 3], Geometry { stride: 2, ..same }),
    ] {
        let [outputs, inputs, ..] = kernel;
        let (weight, bias) = (randn(&kernel), randn(&[outputs]));
        let [past, xs] = [2, 3].map(|frames| randn(&[frames, 30, 52, inputs]));
        let past = (geometry.front > 0).then_some(past);
        let conv = |weight: &Tensor, bias: &Tensor| {
            Conv::new(weight, Some(bias), geometry).unwrap().then(Activation::Relu)
        };
        let expected = conv(&weight, &bias).forward(past.as_ref(), &xs).unwrap();
        for dtype in [DType::BF16, DType::F16] {
            let there = |x: &Tensor| there_as(x, dtype);
            let past = past.as_ref().map(there);
            let got = conv(&there(&weight), &there(&bias)).forward(past.as_ref(), &there(&xs));
            assert_close(&got.unwrap(), &expected);
        }
    }
}

/// Numbers that begin where no 16 bytes do, as a view of others may.
fn off_by_one(x: &Tensor) -> Tensor {
    let more = x.flatten_all().unwrap().pad_with_zeros(0, 1, 0).unwrap();
    more.narrow(0, 1, x.elem_count()).unwrap().reshape(x.dims()).unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn numbers_may_begin_anywhere() {
    let tokens = || randn(&[1, 200, HEADS, HEAD]);
    let (q, k, v) = (tokens(), tokens(), tokens());
    let attended = |[q, k, v]: [Tensor; 3]| attend(&q, &[Kv { k, v }], 1).unwrap();
    let got = attended([&q, &k, &v].map(|x| off_by_one(&there(x))));
    assert_close(&got, &attended([q, k, v]));

    let (weight, bias) = (randn(&[96, 96, 1, 3, 3]), randn(&[96]));
    let xs = randn(&[2, 30, 52, 96]);
    let convolved = |[weight, bias, xs]: [Tensor; 3]| {
        let conv = Conv::new(&weight, Some(&bias), Geometry::same(3)).unwrap();
        conv.forward(None, &xs).unwrap()
    };
    let got = convolved([&weight, &bias, &xs].map(|x| off_by_one(&there(x))));
    assert_close(&got, &convolved([weight, bias, xs]));
}

#[test]
#[ignore = "needs a GPU"]
fn numbers_move_from_stream_to_stream() {
    move_to_and_fro(&gpu(), &device::beside(&gpu()).unwrap());
}

#[test]
#[ignore = "needs two GPUs"]
fn numbers_move_from_gpu_to_gpu() {
    match DeviceSpec::Cuda(1).open() {
        Ok(other) => move_to_and_fro(&gpu(), &other),
        Err(error) => eprintln!("skipped: {error}"),
    }
}

/// What is freed at once is not overwritten too early.
fn move_to_and_fro(here: &Device, beside: &Device) {
    let numbers = Tensor::randn(0f32, 1.0, 1 << 22, &Device::Cpu).unwrap();
    let mut x = numbers.to_device(here).unwrap();
    for _ in 0..50 {
        let there = device::moved(&x, beside).unwrap();
        drop(x);
        let _over = Tensor::full(7f32, 1 << 22, here).unwrap();
        x = device::moved(&there, here).unwrap();
        drop(there);
        let _over = Tensor::full(7f32, 1 << 22, beside).unwrap();
    }
    let got = x.to_device(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got, numbers.to_vec1::<f32>().unwrap());
}

#[test]
#[ignore = "needs a GPU"]
fn linears() {
    let [xs, residual] = [512, 256].map(|width| randn(&[2, 100, width]));
    let (weight, bias) = (randn(&[256, 512]), randn(&[256]));
    let all = |weight: &Tensor, bias: &Tensor, xs: &Tensor, residual: &Tensor| {
        let linear = Linear::new(weight.clone(), bias.clone()).unwrap();
        [linear.forward(xs), linear.forward_gelu(xs), linear.forward_add(xs, residual)]
            .map(|ys| ys.unwrap())
    };
    // Another bias takes the same way as the first.
    for bias in [bias, randn(&[256])] {
        let got = all(&there(&weight), &there(&bias), &there(&xs), &there(&residual));
        let expected = all(&weight, &bias, &xs, &residual);
        got.iter().zip(&expected).for_each(|(got, expected)| assert_close(got, expected));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn sizes_that_do_not_fit_a_linear_are_errors() {
    let linear = Linear::new(there(&randn(&[256, 512])), there(&randn(&[256]))).unwrap();
    let [wide, narrow] = [512, 256].map(|width| there(&randn(&[2, 100, width])));
    assert!(linear.forward_gelu(&narrow).is_err());
    assert!(linear.forward_add(&narrow, &narrow).is_err());
    assert!(linear.forward_add(&wide, &wide).is_err());
    assert!(linear.forward_add(&wide, &narrow.narrow(1, 0, 1).unwrap()).is_err());
}

#[test]
#[ignore = "needs a GPU"]
fn rows_of_a_layer() {
    let grid = Grid { rows: 30, cols: 52 };
    let size = [2, grid.tokens(), DIM];
    let [xs, ys] = [(); 2].map(|()| randn(&size));
    let tables = [(); 3].map(|()| Tensor::randn(0f32, 1.0, (2, 1, DIM), &Device::Cpu).unwrap());
    let f32_there = tables.each_ref().map(|table| table.to_device(&gpu()).unwrap());
    let ([scale, shift, gate], [scale_there, shift_there, gate_there]) = (&tables, &f32_there);
    assert_close(
        &add_gated(&there(&xs), &there(&ys), gate_there).unwrap(),
        &add_gated(&xs, &ys, gate).unwrap(),
    );
    let norm = |device: &Device| {
        LayerNorm::plain(DIM, EPS, &VarBuilder::zeros(DType::F32, device)).unwrap()
    };
    assert_close(
        &norm(&gpu()).modulated(&there(&xs), scale_there, shift_there).unwrap(),
        &norm(&Device::Cpu).modulated(&xs, scale, shift).unwrap(),
    );
    let weight = randn(&[DIM]);
    let rotated = |xs: &Tensor, weight: &Tensor| {
        let device = xs.device();
        let vb = HashMap::from([("weight".to_owned(), weight.clone())]);
        let norm =
            RmsNorm::new(DIM, EPS, VarBuilder::from_tensors(vb, xs.dtype(), device)).unwrap();
        let rotation = Rope::new(HEAD).rotation(7, 2, grid, device).unwrap();
        norm.forward_rotated(xs, HEADS, &rotation).unwrap()
    };
    assert_close(&rotated(&there(&xs), &there(&weight)), &rotated(&xs, &weight));
}

#[test]
#[ignore = "needs a GPU"]
fn norms_of_a_layer() {
    let (xs, weight) = (randn(&[2, 100, DIM]), randn(&[DIM]));
    let bias = randn(&[DIM]);
    let normed = |xs: &Tensor, weight: &Tensor, bias: &Tensor| {
        let tensors = [("weight", weight.clone()), ("bias", bias.clone())];
        let vb = HashMap::from(tensors.map(|(name, tensor)| (name.to_owned(), tensor)));
        let vb = VarBuilder::from_tensors(vb, xs.dtype(), xs.device());
        let rms = RmsNorm::new(DIM, EPS, vb.clone()).unwrap().forward(xs).unwrap();
        (LayerNorm::new(DIM, EPS, vb).unwrap().forward(xs).unwrap(), rms)
    };
    let got = normed(&there(&xs), &there(&weight), &there(&bias));
    let expected = normed(&xs, &weight, &bias);
    assert_close(&got.0, &expected.0);
    assert_close(&got.1, &expected.1);
}
