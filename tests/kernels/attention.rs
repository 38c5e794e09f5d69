//! Attention.

use candle_core::Tensor;
use gstblockcascade::device::arguments::Attention;
use gstblockcascade::layers::attention::{Kv, attend};
use half::bf16;
use libloading::Library;

use crate::{address, assert_close, bf16s, compiled, randn, run, run_both_ways};

/// Some queries over keys in pieces.
struct Case {
    queries: usize,
    heads: usize,
    width: usize,
    pieces: &'static [usize],
    last_count: usize,
    /// Of the keys.
    parts: usize,
    kernel: &'static str,
}

const fn case(
    queries: usize,
    heads: usize,
    width: usize,
    pieces: &'static [usize],
    last_count: usize,
) -> Case {
    Case { queries, heads, width, pieces, last_count, parts: 1, kernel: "attention" }
}

/// Tiles that are full and that are not, keys that end with a tile and that do not, pieces shorter than a
/// tile and longer, of which one is empty.
const CASES: [Case; 6] = [
    case(1, 1, 32, &[1], 1),
    case(5, 3, 32, &[7], 9),
    case(130, 2, 64, &[64, 1, 0, 63], 1),
    case(128, 1, 128, &[65], 435),
    case(257, 2, 128, &[100, 37, 5], 1),
    case(40, 1, 128, &[192], 2),
];

const fn case_90(
    queries: usize,
    heads: usize,
    pieces: &'static [usize],
    last_count: usize,
) -> Case {
    Case { kernel: "attention_90", ..case(queries, heads, Attention::WIDTH_90, pieces, last_count) }
}

/// Whole tiles and parts of them, in one piece and in several, all buffers and more tiles than buffers.
const CASES_90: [Case; 7] = [
    case_90(5, 2, &[3], 9),
    case_90(128, 1, &[77, 1], 435),
    case_90(200, 2, &[128, 0, 100, 37], 1),
    case_90(70, 1, &[300, 212], 2),
    case_90(64, 1, &[130, 700], 1),
    Case { parts: 2, ..case_90(131, 2, &[200, 185], 3) },
    Case { parts: 3, ..case_90(3, 1, &[300], 1) },
];

#[test]
fn attention_is_the_plain_one() {
    are_the_plain_one(&CASES);
}

#[test]
fn attention_of_warpgroups_is_the_plain_one() {
    are_the_plain_one(&CASES_90);
}

fn are_the_plain_one(cases: &[Case]) {
    let kernel = compiled(cases[0].kernel);
    for (number, case) in cases.iter().enumerate() {
        let [q, k, v] = case.tensors();
        let keys = case.keys(&k, &v);
        let expected = attend(&q, &keys, case.last_count).unwrap();
        let got = case.run(&kernel, &bf16s(&q), case.heads * case.width, &keys);
        assert_close(&got, &expected, &format!("case {number}"));
    }
}

/// Sums of powers of two that no float holds.
#[test]
fn parts_with_large_scores_are_joined() {
    let case = Case { parts: 3, ..case_90(3, 1, &[300], 1) };
    let [q, k, v] = case.tensors();
    let (q, keys) = (q.affine(64.0, 0.0).unwrap(), case.keys(&k, &v));
    let expected = attend(&q, &keys, 1).unwrap();
    let got = case.run(&compiled(case.kernel), &bf16s(&q), case.width, &keys);
    assert_close(&got, &expected, "large scores");
}

/// What was begun with some of the keys, in so many parts, is joined with what the others come to, if there are any.
#[test]
fn keys_that_come_later_count_as_much() {
    let kernel = compiled("attention_90");
    for (number, (pieces, known, parts)) in
        [(&[200, 385, 3][..], 1, [2, 3]), (&[40, 300], 1, [1, 1]), (&[130, 20], 2, [2, 0])]
            .into_iter()
            .enumerate()
    {
        let case = case_90(131, 2, pieces, 1);
        let [q, k, v] = case.tensors();
        let keys = case.keys(&k, &v);
        let expected = attend(&q, &keys, 1).unwrap();
        let (first, rest) = keys.split_at(known);
        let q = bf16s(&q);
        let rows = case.queries * case.heads;
        let room = |parts| vec![f32::NAN; parts * rows * (case.width + 1)];
        let of = |keys: &[Kv], list: &mut Vec<f32>, parts: usize, is_late| {
            let keys: Vec<_> = keys.iter().map(|kv| [bf16s(&kv.k), bf16s(&kv.v)]).collect();
            let mut arguments = case.arguments(&q, &keys);
            arguments.key_parts = parts as i32;
            if parts > 0 {
                arguments.parts = list.as_mut_ptr() as u64;
                run(&kernel, &arguments.start_90(), &arguments, is_late);
            }
            arguments
        };
        let got: Vec<bf16> = run_both_ways(rows * case.width, |out, is_late| {
            let (mut earlier, mut later) = (room(parts[0]), room(parts[1]));
            of(first, &mut earlier, parts[0], is_late);
            let mut arguments = of(rest, &mut later, parts[1], is_late);
            (arguments.earlier, arguments.out) = (earlier.as_ptr() as u64, out);
            arguments.earlier_parts = parts[0] as i32;
            run(&kernel, &arguments.start_joining(), &arguments, is_late);
        });
        assert_close(&got, &expected, &format!("case {number}"));
    }
}

/// The rows of queries may lie among other numbers, as a product of several linears at once makes them.
#[test]
fn queries_may_be_apart() {
    for case in [case(20, 2, 32, &[33], 1), case_90(130, 2, &[33], 1)] {
        let kernel = compiled(case.kernel);
        let [q, k, v] = case.tensors();
        let (q, keys) = (bf16s(&q), case.keys(&k, &v));
        let row = case.heads * case.width;
        let filled = |row: &[bf16]| [row, &[bf16::NAN; 64]].concat();
        let apart: Vec<_> = q.chunks(row).flat_map(filled).collect();
        let expected = case.run(&kernel, &q, row, &keys);
        assert_eq!(case.run(&kernel, &apart, row + 64, &keys), expected);
    }
}

impl Case {
    /// In f32, of bf16's numbers.
    fn tensors(&self) -> [Tensor; 3] {
        let keys = self.pieces.iter().sum();
        [self.queries, keys, keys].map(|tokens| randn(&[1, tokens, self.heads, self.width]))
    }

    fn keys(&self, k: &Tensor, v: &Tensor) -> Vec<Kv> {
        let mut start = 0;
        let piece = |&tokens: &usize| {
            let part = |x: &Tensor| x.narrow(1, start, tokens).unwrap();
            let kv = Kv { k: part(k), v: part(v) };
            start += tokens;
            kv
        };
        self.pieces.iter().map(piece).collect()
    }

    fn arguments(&self, q: &[bf16], keys: &[[Vec<bf16>; 2]]) -> Attention {
        let mut arguments = Attention::new(self.queries, self.heads, self.width, self.last_count);
        let row = self.heads * self.width;
        (arguments.q, arguments.q_row) = (address(q), row as i64);
        for (index, [k, v]) in keys.iter().enumerate() {
            arguments.push(index, k.len() / row, [address(k), address(v)]);
        }
        arguments
    }

    fn run(&self, kernel: &Library, q: &[bf16], q_row: usize, keys: &[Kv]) -> Vec<bf16> {
        let keys: Vec<_> = keys.iter().map(|kv| [bf16s(&kv.k), bf16s(&kv.v)]).collect();
        let arguments = Attention { q_row: q_row as i64, ..self.arguments(q, &keys) };
        run_both_ways(self.queries * self.heads * self.width, |out, is_late| {
            let rows = self.queries * self.heads;
            let mut parts = vec![f32::NAN; self.parts * rows * (self.width + 1)];
            let mut arguments = arguments;
            arguments.out = out;
            if self.parts > 1 {
                arguments.parts = parts.as_mut_ptr() as u64;
            }
            arguments.key_parts = self.parts as i32;
            match self.kernel {
                "attention" => run(kernel, &arguments.start(self.width), &arguments, is_late),
                _ => run(kernel, &arguments.start_90(), &arguments, is_late),
            }
            if self.parts > 1 {
                run(kernel, &arguments.start_joining(), &arguments, is_late);
            }
        })
    }
}
