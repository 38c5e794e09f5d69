//! From one prompt to the next, over several blocks.

use candle_core::{D, DType, Result, Tensor};

use crate::cascade::PromptPolicy;
use crate::model::TextEmbedding;

/// How a new prompt takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptChange {
    /// Which blocks it touches; one that names its block touches that one and later ones.
    pub policy: PromptPolicy,
    /// Blocks that it takes to arrive: the k-th of n hears k/n of it. 0 and 1 are at once.
    pub blocks: u32,
    /// The way between the two text embeddings.
    pub method: TransitionMethod,
}

/// The way between two text embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransitionMethod {
    /// Straight: `(1 - t) a + t b`.
    #[default]
    Linear,
    /// Along the arc, token by token: `(sin((1 - t) w) a + sin(t w) b) / sin w`, where `w` is the
    /// angle between the two. Straight where there is no arc: for padding, and for equal directions.
    Slerp,
}

/// A share `t` in `0..=1` of the way from one embedding to another, both `(tokens, dim)`; the
/// shorter one goes on with zeros, as upstream pads prompts.
pub(super) fn between(
    from: &TextEmbedding,
    to: &TextEmbedding,
    t: f64,
    method: TransitionMethod,
) -> Result<TextEmbedding> {
    let tokens = from.0.dim(0)?.max(to.0.dim(0)?);
    let pad = |x: &Tensor| x.pad_with_zeros(0, 0, tokens - x.dim(0)?);
    let (a, b) = (pad(&from.0)?, pad(&to.0)?);
    let mixed = match method {
        TransitionMethod::Linear => ((a * (1.0 - t))? + (b * t)?)?,
        TransitionMethod::Slerp => {
            let (of_a, of_b) = arc_shares(&a, &b, t)?;
            (a.broadcast_mul(&of_a)? + b.broadcast_mul(&of_b)?)?
        }
    };
    Ok(TextEmbedding(mixed))
}

/// How much of each token of `a` and of `b`, both `(tokens, 1)`.
fn arc_shares(a: &Tensor, b: &Tensor, t: f64) -> Result<(Tensor, Tensor)> {
    let sums = |x: &Tensor, y: &Tensor| {
        let (x, y) = (x.to_dtype(DType::F32)?, y.to_dtype(DType::F32)?);
        (x * y)?.sum(D::Minus1)?.to_vec1::<f32>()
    };
    let (aa, bb, ab) = (sums(a, a)?, sums(b, b)?, sums(a, b)?);
    let shares = aa.iter().zip(&bb).zip(&ab).map(|((aa, bb), ab)| {
        let angle = f64::from(ab / (aa * bb).sqrt()).clamp(-1.0, 1.0).acos();
        let sine = angle.sin();
        // Not a number for a token of zeros; nearly 0 where the arc is a point, or is not unique.
        if sine.is_nan() || sine < 1e-4 {
            return (1.0 - t, t);
        }
        (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine)
    });
    let (of_a, of_b): (Vec<f64>, Vec<f64>) = shares.unzip();
    let column = |shares: Vec<f64>| {
        let shape = (shares.len(), 1);
        Tensor::from_vec(shares, shape, a.device())?.to_dtype(a.dtype())
    };
    Ok((column(of_a)?, column(of_b)?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn embedding(tokens: &[[f32; 2]]) -> TextEmbedding {
        let numbers = tokens.as_flattened();
        TextEmbedding(Tensor::from_slice(numbers, (tokens.len(), 2), &Device::Cpu).unwrap())
    }

    fn mixed(
        from: &[[f32; 2]],
        to: &[[f32; 2]],
        t: f64,
        method: TransitionMethod,
    ) -> Vec<Vec<f32>> {
        between(&embedding(from), &embedding(to), t, method).unwrap().0.to_vec2().unwrap()
    }

    #[test]
    fn the_way_is_straight_or_an_arc() {
        let (from, to) = ([[2.0, 0.0]], [[0.0, 2.0]]);
        assert_eq!(mixed(&from, &to, 0.25, TransitionMethod::Linear), [[1.5, 0.5]]);
        let half = mixed(&from, &to, 0.5, TransitionMethod::Slerp);
        assert!(half[0].iter().all(|x| (x - 2f32.sqrt()).abs() < 1e-6), "{half:?}");
    }

    #[test]
    fn both_ends_are_the_prompts_themselves() {
        let (from, to) = ([[2.0, 1.0], [0.5, -1.0]], [[-1.0, 2.0], [3.0, 0.5]]);
        for method in [TransitionMethod::Linear, TransitionMethod::Slerp] {
            assert_eq!(mixed(&from, &to, 0.0, method), from);
            assert_eq!(mixed(&from, &to, 1.0, method), to);
        }
    }

    #[test]
    fn where_there_is_no_arc_the_way_is_straight() {
        for (from, to, half) in [
            ([1.0, 1.0], [3.0, 3.0], [2.0, 2.0]),
            ([1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]),
            ([0.0, 0.0], [4.0, 0.0], [2.0, 0.0]),
        ] {
            assert_eq!(mixed(&[from], &[to], 0.5, TransitionMethod::Slerp), [half]);
        }
    }

    #[test]
    fn a_shorter_prompt_is_padded() {
        let (short, long) = ([[1.0, 1.0]], [[1.0, 1.0], [2.0, 4.0]]);
        for method in [TransitionMethod::Linear, TransitionMethod::Slerp] {
            assert_eq!(mixed(&short, &long, 0.5, method), [[1.0, 1.0], [1.0, 2.0]]);
            assert_eq!(mixed(&long, &short, 0.5, method), [[1.0, 1.0], [1.0, 2.0]]);
        }
    }
}
