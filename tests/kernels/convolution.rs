//! Convolution.

use candle_core::Tensor;
use gstblockcascade::device::arguments::Convolution;
use gstblockcascade::layers::conv::{Activation, Conv, Geometry};
use half::{bf16, f16};
use libloading::Library;

use crate::{Number, address, assert_close, compiled, numbers, randn, run, run_both_ways};

/// A convolution of some frames behind some others.
#[derive(Clone)]
struct Case {
    /// Outputs, inputs, frames, rows, columns.
    kernel: [usize; 5],
    geometry: Geometry,
    past: usize,
    /// Frames, rows, columns.
    xs: [usize; 3],
    has_residual: bool,
}

/// What the decoders have, in sizes that fill tiles and that do not, with all of the past, some and none.
fn cases() -> [Case; 7] {
    let case =
        |kernel, geometry, past, xs| Case { kernel, geometry, past, xs, has_residual: false };
    let same = Geometry::same(3);
    let halved = Geometry { padding: (0, 1), stride: 2, ..Geometry::POINTWISE };
    let time = Geometry::POINTWISE.causal(3);
    [
        case([32, 16, 1, 1, 1], Geometry::POINTWISE, 0, [1, 3, 5]),
        Case { has_residual: true, ..case([96, 40, 3, 3, 3], same.causal(3), 2, [3, 7, 9]) },
        case([3, 8, 3, 3, 3], same.causal(3), 1, [2, 6, 11]),
        Case { ..case([70, 32, 1, 3, 3], Geometry { enlarge: 2, ..same }, 0, [1, 5, 4]) },
        case([24, 8, 1, 3, 3], halved, 0, [2, 8, 6]),
        case([160, 64, 3, 1, 1], time, 0, [2, 4, 5]),
        case([16, 8, 3, 1, 1], Geometry { frame_stride: 2, front: 0, ..time }, 1, [4, 3, 3]),
    ]
}

/// Parts of a frame and several of them, with the frame's sides in and outside of a square.
fn cases_of_patches() -> [Case; 6] {
    let [_, wide, thin, enlarged, _, in_time, _] = cases();
    [
        cases()[0].clone(),
        Case { xs: [3, 17, 9], ..wide },
        Case { xs: [2, 6, 33], ..thin },
        Case { xs: [1, 9, 7], ..enlarged },
        Case { xs: [2, 4, 18], ..in_time },
        Case { has_residual: true, ..cases()[0].clone() },
    ]
}

#[test]
fn convolution_is_that_of_the_cpu() {
    is_that_of_the_cpu::<bf16>(Layout::Windows, &cases());
    is_that_of_the_cpu::<f16>(Layout::Windows, &cases());
}

#[test]
fn convolution_of_warpgroups_is_that_of_the_cpu() {
    is_that_of_the_cpu::<bf16>(Layout::Patches, &cases_of_patches());
    is_that_of_the_cpu::<f16>(Layout::Patches, &cases_of_patches());
}

/// What a block of threads computes from.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Windows,
    Patches,
}

fn is_that_of_the_cpu<T: Number>(layout: Layout, cases: &[Case]) {
    let kernel = compiled(match layout {
        Layout::Windows => "convolution",
        Layout::Patches => "convolution_90",
    });
    for (number, case) in cases.iter().enumerate() {
        for activation in [Activation::Identity, Activation::Relu] {
            let inputs = case.inputs();
            let expected = inputs.expected(case, activation);
            let got = case.run::<T>((&kernel, layout), &inputs, &expected, activation);
            let what = format!("{:?} {layout:?}, case {number}, {activation:?}", T::DTYPE);
            assert_close(&got, &expected, &what);
        }
    }
}

/// In f32, of bf16's numbers.
struct Inputs {
    weight: Tensor,
    bias: Tensor,
    past: Option<Tensor>,
    xs: Tensor,
    residual: Option<Tensor>,
}

impl Inputs {
    fn expected(&self, case: &Case, activation: Activation) -> Tensor {
        let conv =
            Conv::new(&self.weight, Some(&self.bias), case.geometry).unwrap().then(activation);
        match &self.residual {
            Some(residual) => conv.forward_add(self.past.as_ref(), &self.xs, residual).unwrap(),
            None => conv.forward(self.past.as_ref(), &self.xs).unwrap(),
        }
    }
}

impl Case {
    fn inputs(&self) -> Inputs {
        let ([outputs, inputs, ..], [_, height, width]) = (self.kernel, self.xs);
        let frames = |count| randn(&[count, height, width, inputs]);
        Inputs {
            weight: randn(&self.kernel),
            bias: randn(&[outputs]),
            past: (self.past > 0).then(|| frames(self.past)),
            xs: frames(self.xs[0]),
            residual: self.has_residual.then(|| randn(&[self.xs[0], height, width, outputs])),
        }
    }

    fn run<T: Number>(
        &self,
        (kernel, layout): (&Library, Layout),
        inputs: &Inputs,
        expected: &Tensor,
        activation: Activation,
    ) -> Vec<T> {
        let weight = numbers::<T>(&match layout {
            Layout::Windows => Convolution::by_windows(&inputs.weight).unwrap(),
            Layout::Patches => Convolution::by_patches(&inputs.weight, self.of_block()).unwrap(),
        });
        let [bias, xs] = [&inputs.bias, &inputs.xs].map(numbers::<T>);
        let [past, residual] = [&inputs.past, &inputs.residual].map(|x| x.as_ref().map(numbers));
        let pointer = |x: &Option<Vec<T>>| x.as_ref().map_or(0, |x| address(x));
        let arguments = Convolution {
            past: pointer(&past),
            xs: address(&xs),
            weight: address(&weight),
            bias: address(&bias),
            residual: pointer(&residual),
            is_relu: (activation == Activation::Relu).into(),
            ..self.sizes(&inputs.xs, expected)
        };
        run_both_ways(expected.elem_count(), |out, is_late| {
            let arguments = Convolution { out, ..arguments };
            let numbers = T::DTYPE.as_str();
            let start = match layout {
                Layout::Windows => arguments.start(numbers),
                Layout::Patches => arguments.start_90(numbers, self.of_block()),
            };
            run(kernel, &start, &arguments, is_late);
        })
    }

    fn of_block(&self) -> usize {
        Convolution::of_block_90(self.kernel[0])
    }

    /// All but the numbers themselves.
    fn sizes(&self, xs: &Tensor, expected: &Tensor) -> Convolution {
        let [out_frames, out_height, out_width, outputs] = sizes(expected.dims());
        let [_, height, width, inputs] = sizes(xs.dims());
        let [_, _, taps @ ..] = self.kernel.map(|side| side as i32);
        let Geometry { front, frame_stride, enlarge, padding, stride } = self.geometry;
        Convolution {
            zeros: front.saturating_sub(self.past) as i32,
            past_frames: self.past as i32,
            height,
            width,
            inputs,
            out_frames,
            out_height,
            out_width,
            outputs,
            taps,
            frame_stride: frame_stride as i32,
            stride: stride as i32,
            padding: padding.0 as i32,
            is_doubled: (enlarge == 2).into(),
            ..Convolution::default()
        }
    }
}

fn sizes(dims: &[usize]) -> [i32; 4] {
    std::array::from_fn(|i| dims[i] as i32)
}
