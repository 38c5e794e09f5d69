//! The fast path against the specification.

use candle_core::{Device, Result, Tensor};
use proptest::prelude::*;

use crate::layers::numbers::{normal, property};

use super::{Activation, Conv, Geometry, Kernel, direct, plain};

/// One case: sizes of the kernel and of the input.
#[derive(Clone, Debug)]
struct Case {
    kernel: (usize, usize),
    channels: (usize, usize),
    geometry: Geometry,
    past: usize,
    frames: usize,
    size: (usize, usize),
    activation: Activation,
    residual: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let geometry = (0usize..3, 1usize..3, 1usize..3, (0usize..3, 0usize..3), 1usize..3).prop_map(
        |(front, frame_stride, enlarge, padding, stride)| Geometry {
            front,
            frame_stride,
            enlarge,
            padding,
            stride,
        },
    );
    let activation = prop_oneof![Just(Activation::Identity), Just(Activation::Relu)];
    let kernel = (1usize..4, 1usize..4);
    let channels = (1usize..20, 1usize..40);
    let size = (3usize..20, 3usize..40);
    (kernel, channels, geometry, 0usize..3, 3usize..6, size, activation, any::<bool>()).prop_map(
        |(kernel, channels, geometry, past, frames, size, activation, residual)| Case {
            kernel,
            channels,
            geometry,
            past,
            frames,
            size,
            activation,
            residual,
        },
    )
}

#[test]
fn frames_may_be_convolved_one_after_the_other() {
    let (xs, tap) = (normal(1, &[5, 3, 7, 9]), normal(2, &[4, 3, 3, 2]));
    let of_frame = 3 * 3 * 2 * (3 * 4); // inputs, taps, places at every other pixel
    let whole = plain::convolved(&xs, &tap, 2, usize::MAX).unwrap();
    assert_eq!(whole.dims(), xs.conv2d(&tap, 0, 2, 1, 1).unwrap().dims());
    for frames in 1..6 {
        let parts = plain::convolved(&xs, &tap, 2, frames * of_frame + 1).unwrap();
        let difference = (&parts - &whole).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
    }
    let error = plain::convolved(&xs, &tap, 2, of_frame - 1).unwrap_err().to_string();
    assert!(error.contains("7 x 9 pixels to 216 numbers, expected at most 215"), "{error}");
}

fn relative_difference(case: &Case) -> Result<f32> {
    let Case { kernel, channels, geometry, size, .. } = *case;
    let weight = normal(1, &[channels.1, channels.0, kernel.0, kernel.1, kernel.1]);
    let bias = normal(2, &[channels.1]);
    let xs = normal(3, &[case.frames, size.0, size.1, channels.0]);
    let past = match case.past {
        0 => None,
        frames => Some(normal(4, &[frames, size.0, size.1, channels.0])),
    };
    let outputs = [plain, direct].map(|kernel| {
        let conv = Conv::with_kernel(&weight, Some(&bias), geometry, kernel)?.then(case.activation);
        let ys = conv.forward(past.as_ref(), &xs)?;
        if !case.residual {
            return Ok(ys);
        }
        let residual = normal(5, ys.dims());
        conv.forward_add(past.as_ref(), &xs, &residual)
    });
    let [expected, got] = outputs;
    let (expected, got) = (expected?, got?);
    assert_eq!(expected.dims(), got.dims());
    let scale = expected.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
    Ok((expected - got)?.abs()?.max_all()?.to_scalar::<f32>()? / scale)
}

proptest! {
    #![proptest_config(property(192))]

    #[test]
    fn fast_path_equals_plain_path(case in cases()) {
        let difference = relative_difference(&case).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(difference <= 1e-5, "{difference}");
    }
}

/// Several tiles a frame, and products longer than one tile.
#[test]
fn fast_path_equals_plain_path_over_many_tiles() -> Result<()> {
    let case = Case {
        kernel: (3, 3),
        channels: (24, 32),
        geometry: Geometry::same(3).causal(3),
        past: 1,
        frames: 3,
        size: (64, 70),
        activation: Activation::Identity,
        residual: true,
    };
    let difference = relative_difference(&case)?;
    assert!(difference <= 1e-5, "{difference}");
    Ok(())
}

/// Each input pixel doubled along both sides, under a 3x3 kernel: a path of its own.
#[test]
fn doubled_pixels_have_kernels_of_their_own() -> Result<()> {
    for (frames, channels, size) in
        [(1, (16, 8), (56, 96)), (1, (5, 3), (3, 4)), (2, (7, 33), (9, 5))]
    {
        let case = Case {
            kernel: (frames, 3),
            channels,
            geometry: Geometry { enlarge: 2, ..Geometry::same(3) }.causal(frames),
            past: frames - 1,
            frames: 3,
            size,
            activation: Activation::Relu,
            residual: true,
        };
        let weight = normal(1, &[channels.1, channels.0, frames, 3, 3]);
        let Kernel::Direct(packed) = direct(&weight, &case.geometry)? else { panic!("not packed") };
        assert_eq!((packed.subpixels, packed.rows, packed.cols), (2, 2, 2));
        let difference = relative_difference(&case)?;
        assert!(difference <= 1e-5, "{case:?}: {difference}");
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_errors() -> Result<()> {
    let conv = Conv::new(&normal(0, &[2, 3, 1, 3, 3]), None, Geometry::POINTWISE)?;
    assert!(conv.forward(None, &normal(0, &[1, 4, 4, 2])).is_err());
    assert!(conv.forward(None, &normal(0, &[1, 2, 4, 3])).is_err());
    assert!(conv.forward(None, &normal(0, &[0, 4, 4, 3])).is_err());
    let xs = normal(0, &[1, 4, 4, 3]);
    assert!(conv.forward(Some(&normal(0, &[1, 5, 4, 3])), &xs).is_err());
    assert!(conv.forward_add(None, &xs, &xs).is_err());
    assert_eq!(conv.forward(None, &xs)?.dims(), [1, 2, 2, 2]);
    Ok(())
}

/// What `checkpoint::requested` builds networks of: it takes no memory, and still computes.
#[test]
fn one_number_in_place_of_all_weights() -> Result<()> {
    let one = Tensor::new(0.5f32, &Device::Cpu)?.broadcast_as((2, 3, 1, 3, 3))?;
    let conv = Conv::new(&one, None, Geometry::same(3))?;
    let Kernel::Direct(packed) = &conv.kernel else { panic!("not packed") };
    assert!(packed.weight.stride().iter().all(|&stride| stride == 0));
    let xs = normal(7, &[1, 4, 5, 3]);
    let all = Conv::new(&one.contiguous()?, None, Geometry::same(3))?;
    let values = |ys: Tensor| ys.flatten_all()?.to_vec1::<f32>();
    assert_eq!(values(conv.forward(None, &xs)?)?, values(all.forward(None, &xs)?)?);
    Ok(())
}
