//! Softmax attention without a mask: queries of one or several blocks over lists of keys.
//!
//! `plain` is the specification, on any device and in any dtype; `tiled` is the fast path for f32 and
//! bf16 on a CPU, and bf16 on a GPU has a kernel. None ever holds the full matrix of scores.

mod plain;
mod products;
mod tiled;

use candle_core::{Result, Tensor, bail};

use crate::device::kernels;
use tiled::Partial;

/// Keys and values that are attended to together, `(b, tokens, heads, d)` each.
#[derive(Clone, Debug)]
pub struct Kv {
    /// Keys.
    pub k: Tensor,
    /// Values, one for each key.
    pub v: Tensor,
}

/// `softmax(q kᵀ / sqrt(d) + bias) v` over the concatenation of all `keys`.
///
/// `q` is `(b, queries, heads, d)`, each `Kv` is `(b, tokens, heads, d)`; the result is shaped like
/// `q`. The very last key stands for `last_count` equal ones: its bias is `ln(last_count)`.
pub fn attend(q: &Tensor, keys: &[Kv], last_count: usize) -> Result<Tensor> {
    check(q, keys, last_count)?;
    if Partial::is_for(q, keys) {
        let mut partial = Partial::new(q)?;
        partial.add(keys, last_count)?;
        return partial.finish();
    }
    match kernels::attention(q, &pairs(keys), last_count)? {
        Some(out) => Ok(out),
        None => plain::attend(q, keys, last_count),
    }
}

/// Attention to keys that come in two parts: what the first ones come to is computed, or queued on a
/// GPU, before the others are there.
#[derive(Debug)]
pub struct Begun {
    q: Tensor,
    first: First,
}

#[derive(Debug)]
enum First {
    Tiled(Partial),
    Kernel(kernels::Begun),
    /// Nothing is done yet.
    Keys(Vec<Kv>),
}

impl Begun {
    /// [`attend`], as far as keys are known.
    pub fn new(q: &Tensor, keys: Vec<Kv>) -> Result<Self> {
        check(q, &keys, 1)?;
        let first = if Partial::is_for(q, &keys) {
            let mut partial = Partial::new(q)?;
            partial.add(&keys, 1)?;
            First::Tiled(partial)
        } else {
            kernels::begin(q, &pairs(&keys))?.map_or(First::Keys(keys), First::Kernel)
        };
        Ok(Self { q: q.clone(), first })
    }

    /// What [`attend`] makes of those and of the `rest`, which may be none, and on another stream of the
    /// same GPU.
    pub fn finish(self, rest: &[Kv]) -> Result<Tensor> {
        check_shapes(&self.q, rest)?;
        match self.first {
            First::Tiled(mut partial) => {
                partial.add(rest, 1)?;
                partial.finish()
            }
            First::Kernel(begun) => begun.finish(&self.q, &pairs(rest)),
            First::Keys(mut keys) => {
                let here = self.q.device();
                for Kv { k, v } in rest {
                    keys.push(Kv { k: k.to_device(here)?, v: v.to_device(here)? });
                }
                attend(&self.q, &keys, 1)
            }
        }
    }
}

fn pairs(keys: &[Kv]) -> Vec<(&Tensor, &Tensor)> {
    keys.iter().map(|Kv { k, v }| (k, v)).collect()
}

fn check(q: &Tensor, keys: &[Kv], last_count: usize) -> Result<()> {
    check_shapes(q, keys)?;
    if q.elem_count() == 0 {
        bail!("attention needs a query, got {:?}", q.dims());
    }
    if keys.iter().all(|kv| kv.k.dims()[1] == 0) || last_count == 0 {
        bail!("attention needs a key and a last count of at least 1, got {last_count}");
    }
    Ok(())
}

fn check_shapes(q: &Tensor, keys: &[Kv]) -> Result<()> {
    let (b, _, heads, d) = q.dims4()?;
    for Kv { k, v } in keys {
        let (kb, _, k_heads, k_dim) = k.dims4()?;
        if (kb, k_heads, k_dim) != (b, heads, d) || k.dims() != v.dims() {
            bail!(
                "queries {:?} cannot attend to keys {:?}, values {:?}",
                q.dims(),
                k.dims(),
                v.dims()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::products::{Dots, Products, Wide};
    use super::*;
    use candle_core::DType;
    use half::bf16;
    use proptest::prelude::*;

    use crate::layers::dots;
    use crate::layers::numbers::{normal, property};
    use crate::layers::real::Real;

    fn tiled<T: Real, P: Products<T>>(q: &Tensor, keys: &[Kv], last_count: usize) -> Tensor {
        let mut partial = Partial::new(q).unwrap();
        partial.add_as::<T, P>(keys, last_count).unwrap();
        partial.finish().unwrap()
    }

    /// Other ones than those of `normal(0, ..)`.
    fn keys(b: usize, lengths: &[usize], heads: usize, d: usize) -> Vec<Kv> {
        let kv = |(n, seed): (&usize, u64)| {
            let numbers = |seed| normal(seed, &[b, *n, heads, d]);
            Kv { k: numbers(2 * seed), v: numbers(2 * seed + 1) }
        };
        lengths.iter().zip(1..).map(kv).collect()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    proptest! {
        #![proptest_config(property(48))]
        #[test]
        fn tiled_is_plain(
            b in 1usize..3, n in 1usize..150, heads in 1usize..4, d in 1usize..40,
            lengths in prop::collection::vec(0usize..300, 1..4), extra in 1usize..300,
            last_count in 1usize..500,
        ) {
            let lengths: Vec<usize> = lengths.into_iter().chain([extra]).collect();
            let (q, keys) = (normal(0, &[b, n, heads, d]), keys(b, &lengths, heads, d));
            let plain = plain::attend(&q, &keys, last_count).unwrap();
            let tiled = tiled::<f32, Wide>(&q, &keys, last_count);
            prop_assert!(difference(&plain, &tiled) < 1e-5);
        }
    }

    fn as_dtype(kv: &Kv, dtype: DType) -> Kv {
        Kv { k: kv.k.to_dtype(dtype).unwrap(), v: kv.v.to_dtype(dtype).unwrap() }
    }

    proptest! {
        #![proptest_config(property(48))]
        /// Beside candle's result in f32 for the same numbers in bf16: of the dot products the weights
        /// are rounded too.
        #[test]
        fn bf16_is_plain(
            b in 1usize..3, n in 1usize..150, heads in 1usize..4, d in 1usize..150,
            lengths in prop::collection::vec(0usize..300, 1..4), extra in 1usize..300,
            last_count in 1usize..500,
        ) {
            let lengths: Vec<usize> = lengths.into_iter().chain([extra]).collect();
            let q = normal(0, &[b, n, heads, d]).to_dtype(DType::BF16).unwrap();
            let half: Vec<_> =
                keys(b, &lengths, heads, d).iter().map(|kv| as_dtype(kv, DType::BF16)).collect();
            let single: Vec<_> = half.iter().map(|kv| as_dtype(kv, DType::F32)).collect();
            let q32 = q.to_dtype(DType::F32).unwrap();
            let plain = plain::attend(&q32, &single, last_count).unwrap();
            let off = |out: Tensor| difference(&plain, &out.to_dtype(DType::F32).unwrap());
            prop_assert!(off(tiled::<bf16, Wide>(&q, &half, last_count)) < 0.01);
            prop_assert_eq!(attend(&q, &half, last_count).unwrap().dtype(), DType::BF16);
            if dots::are_fast() {
                let out = tiled::<bf16, Dots>(&q, &half, last_count);
                prop_assert!(off(out) < 0.015);
            }
        }
    }

    proptest! {
        #![proptest_config(property(48))]
        /// In f32 and in bf16; in f64, which has no fast path, too.
        #[test]
        fn in_two_parts_it_is_the_same(
            n in 1usize..150, heads in 1usize..4, d in 1usize..40,
            first in prop::collection::vec(1usize..300, 1..4),
            rest in prop::collection::vec(1usize..300, 0..4),
        ) {
            let q = normal(0, &[1, n, heads, d]);
            let all = keys(1, &[&first[..], &rest].concat(), heads, d);
            for (dtype, bound) in [(DType::F32, 1e-5), (DType::BF16, 0.015), (DType::F64, 1e-6)] {
                let q = q.to_dtype(dtype).unwrap();
                let mut known: Vec<_> = all.iter().map(|kv| as_dtype(kv, dtype)).collect();
                let whole = attend(&q, &known, 1).unwrap().to_dtype(DType::F32).unwrap();
                let rest = known.split_off(first.len());
                let got = Begun::new(&q, known).unwrap().finish(&rest).unwrap();
                prop_assert!(difference(&whole, &got.to_dtype(DType::F32).unwrap()) < bound);
            }
        }
    }

    /// Views into larger tensors are what blocks of one forward offer.
    #[test]
    fn views_are_read_in_place() {
        let q = normal(0, &[1, 10, 2, 8]);
        let kv = keys(1, &[20], 2, 8).remove(0);
        let view = |t: &Tensor| t.narrow(1, 5, 7).unwrap();
        let views = [Kv { k: view(&kv.k), v: view(&kv.v) }];
        let copies = [Kv {
            k: views[0].k.force_contiguous().unwrap(),
            v: views[0].v.force_contiguous().unwrap(),
        }];
        let a = attend(&view(&kv.k), &views, 1).unwrap();
        assert_eq!(difference(&a, &attend(&view(&kv.k).copy().unwrap(), &copies, 1).unwrap()), 0.0);
        assert!(attend(&q, &views, 1).is_ok());
    }

    #[test]
    fn pieces_may_be_as_many_as_tokens() {
        let (q, kv) = (normal(0, &[1, 2, 1, 8]), keys(1, &[8192], 1, 8).remove(0));
        let piece = |t: &Tensor, at| t.narrow(1, at, 1).unwrap();
        let pieces: Vec<_> =
            (0..8192).map(|at| Kv { k: piece(&kv.k, at), v: piece(&kv.v, at) }).collect();
        let whole = attend(&q, &[kv], 1).unwrap();
        assert!(difference(&whole, &attend(&q, &pieces, 1).unwrap()) < 1e-5);
    }

    #[test]
    fn a_last_key_of_count_n_is_n_equal_keys() {
        let q = normal(0, &[1, 9, 2, 8]);
        let kv = keys(1, &[5], 2, 8).remove(0);
        let repeat = |t: &Tensor| {
            let last = t.narrow(1, 4, 1).unwrap().repeat((1, 6, 1, 1)).unwrap();
            Tensor::cat(&[t, &last], 1).unwrap()
        };
        let unfolded = [Kv { k: repeat(&kv.k), v: repeat(&kv.v) }];
        let folded = attend(&q, &[kv], 7).unwrap();
        assert!(difference(&folded, &attend(&q, &unfolded, 1).unwrap()) < 1e-6);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let q = normal(0, &[1, 4, 1, 8]).affine(100.0, 0.0).unwrap();
        let out = attend(&q, &keys(1, &[600], 1, 8), 1).unwrap();
        assert!(out.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let error = attend(&normal(0, &[1, 4, 2, 8]), &keys(1, &[5], 1, 8), 1).unwrap_err();
        assert!(error.to_string().contains("[1, 4, 2, 8]"), "{error}");
        assert!(attend(&normal(0, &[1, 4, 2, 8]), &[], 1).is_err());
        let begun = Begun::new(&normal(0, &[1, 4, 2, 8]), keys(1, &[5], 2, 8)).unwrap();
        let error = begun.finish(&keys(1, &[5], 1, 8)).unwrap_err();
        assert!(error.to_string().contains("[1, 5, 1, 8]"), "{error}");
    }
}
