//! Checkpoints from the outside: formats, names, LoRAs, manifests, memory, and damaged files.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests, which clippy does not see

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use gstblockcascade::checkpoint::{
    self, Checkpoint, Error, Manifest, Place, Role, StoredDtype, TensorShape, requested,
};
use gstblockcascade::model::{Interrupt, VideoModel};
use gstblockcascade::wan::vae::{WanDecoder, WanEncoder, WanVaeConfig};
use gstblockcascade::wan::{WanConfig, WanDit, dit_config, vae_config};
use proptest::prelude::*;
use safetensors::tensor::TensorView;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoint").join(name)
}

/// Names and shapes of a network, from tests/tensors.
fn listed(file: &str) -> Vec<TensorShape> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensors").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let (name, dims) = line.split_once('\t').unwrap();
        let shape = dims.split('x').map(|d| d.parse().unwrap()).collect();
        TensorShape { name: name.to_owned(), shape }
    };
    text.lines().map(row).collect()
}

/// A `.safetensors` file in memory of f32 tensors.
fn safetensors(tensors: &[(&str, &[usize], Vec<f32>)]) -> Vec<u8> {
    safetensors_with(tensors, &[])
}

/// The same with vectors of other element types.
fn safetensors_with(
    tensors: &[(&str, &[usize], Vec<f32>)],
    others: &[(&str, StoredDtype, &[u8])],
) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.2.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(StoredDtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let others = others.iter().map(|(name, dtype, bytes)| {
        (*name, TensorView::new(*dtype, vec![8 * bytes.len() / dtype.bitsize()], bytes).unwrap())
    });
    ::safetensors::serialize(views.chain(others), None).unwrap()
}

/// A checkpoint of one-element tensors under these names.
fn named(names: &[String]) -> Checkpoint {
    let tensors: Vec<_> = names.iter().map(|n| (n.as_str(), &[1][..], vec![0f32])).collect();
    Checkpoint::from_bytes("names", safetensors(&tensors)).unwrap()
}

fn values(checkpoint: Checkpoint, name: &str) -> Vec<f32> {
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu);
    let tensor = vb.get_unchecked(name).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn names(checkpoint: &Checkpoint) -> Vec<String> {
    checkpoint.tensors().map(|tensor| tensor.name.to_owned()).collect()
}

// Names -------------------------------------------------------------------------------------------

/// Upstream's name to diffusers', written from their code and not from ours.
fn diffusers_vae(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let residual = |rest: &[&str]| match rest {
        ["residual", "0", last] => format!("norm1.{last}"),
        ["residual", "2", last] => format!("conv1.{last}"),
        ["residual", "3", last] => format!("norm2.{last}"),
        ["residual", "6", last] => format!("conv2.{last}"),
        ["shortcut", last] => format!("conv_shortcut.{last}"),
        rest => rest.join("."),
    };
    match parts.as_slice() {
        ["conv1", last] => format!("quant_conv.{last}"),
        ["conv2", last] => format!("post_quant_conv.{last}"),
        [side, "conv1", last] => format!("{side}.conv_in.{last}"),
        [side, "head", "0", last] => format!("{side}.norm_out.{last}"),
        [side, "head", "2", last] => format!("{side}.conv_out.{last}"),
        [side, "middle", "1", rest @ ..] => {
            format!("{side}.mid_block.attentions.0.{}", rest.join("."))
        }
        [side, "middle", k, rest @ ..] => {
            let k = k.parse::<usize>().unwrap() / 2;
            format!("{side}.mid_block.resnets.{k}.{}", residual(rest))
        }
        [side, "downsamples", k, rest @ ..] => {
            format!("{side}.down_blocks.{k}.{}", residual(rest))
        }
        [side, "upsamples", k, rest @ ..] => {
            let k: usize = k.parse().unwrap();
            let place = match k % 4 {
                3 => "upsamplers.0".to_owned(),
                j => format!("resnets.{j}"),
            };
            format!("{side}.up_blocks.{}.{place}.{}", k / 4, residual(rest))
        }
        _ => panic!("{name}"),
    }
}

fn diffusers_dit(name: &str) -> String {
    let name =
        name.replace("head.modulation", "scale_shift_table").replace("head.head", "proj_out");
    let name = name.replace("modulation", "scale_shift_table").replace("norm3", "norm2");
    let name = name.replace("time_embedding.0", "condition_embedder.time_embedder.linear_1");
    let name = name.replace("time_embedding.2", "condition_embedder.time_embedder.linear_2");
    let name = name.replace("text_embedding.0", "condition_embedder.text_embedder.linear_1");
    let name = name.replace("text_embedding.2", "condition_embedder.text_embedder.linear_2");
    let name = name.replace("time_projection.1", "condition_embedder.time_proj");
    let name = name.replace("ffn.0", "ffn.net.0.proj").replace("ffn.2", "ffn.net.2");
    let name = name.replace("self_attn", "attn1").replace("cross_attn", "attn2");
    let to = |c: &str| if c == "o" { "to_out.0".to_owned() } else { format!("to_{c}") };
    ["q", "k", "v", "o"].iter().fold(name, |name, c| {
        name.replace(&format!(".{c}.weight"), &format!(".{}.weight", to(c)))
            .replace(&format!(".{c}.bias"), &format!(".{}.bias", to(c)))
    })
}

fn transformers_umt5(name: &str) -> String {
    let Some(rest) = name.strip_prefix("blocks.") else {
        return match name {
            "token_embedding.weight" => "shared.weight".into(),
            "norm.weight" => "encoder.final_layer_norm.weight".into(),
            _ => panic!("{name}"),
        };
    };
    let (i, rest) = rest.split_once('.').unwrap();
    let attention = format!("encoder.block.{i}.layer.0");
    let ffn = format!("encoder.block.{i}.layer.1");
    match rest {
        "norm1.weight" => format!("{attention}.layer_norm.weight"),
        "norm2.weight" => format!("{ffn}.layer_norm.weight"),
        "pos_embedding.embedding.weight" => {
            format!("{attention}.SelfAttention.relative_attention_bias.weight")
        }
        "ffn.gate.0.weight" => format!("{ffn}.DenseReluDense.wi_0.weight"),
        "ffn.fc1.weight" => format!("{ffn}.DenseReluDense.wi_1.weight"),
        "ffn.fc2.weight" => format!("{ffn}.DenseReluDense.wo.weight"),
        rest => format!("{attention}.SelfAttention.{}", rest.strip_prefix("attn.").unwrap()),
    }
}

#[test]
fn every_layout_comes_back_under_upstreams_names() {
    type Rename = fn(&str) -> String;
    let cases: [(&str, usize, Rename); 8] = [
        ("vae_wan21.tsv", 194, diffusers_vae),
        ("lightvae_wan21.tsv", 194, str::to_owned),
        ("vae_wan21.tsv", 194, str::to_owned),
        ("taew2_1.tsv", 128, str::to_owned),
        ("dit_1_3b.tsv", 825, diffusers_dit),
        ("dit_14b.tsv", 1095, |name| format!("model.{name}")),
        ("umt5_xxl_wan.tsv", 242, transformers_umt5),
        ("umt5_xxl_wan.tsv", 242, str::to_owned),
    ];
    for (file, count, rename) in cases {
        let mut want: Vec<String> = listed(file).into_iter().map(|t| t.name).collect();
        assert_eq!(want.len(), count, "{file}");
        let renamed: Vec<String> = want.iter().map(|name| rename(name)).collect();
        want.sort();
        assert_eq!(names(&named(&renamed)), want, "{file}");
    }
}

#[test]
fn a_tied_copy_is_no_second_tensor() {
    let both = ["encoder.embed_tokens.weight", "shared.weight"];
    let bytes = safetensors(&[(both[0], &[1], vec![1.0]), (both[1], &[1], vec![2.0])]);
    let checkpoint = Checkpoint::from_bytes("tied", bytes).unwrap();
    assert_eq!(names(&checkpoint), both, "without an encoder these are just names");

    let norm = ("encoder.block.0.layer.0.layer_norm.weight", &[1][..], vec![3.0]);
    let bytes =
        safetensors(&[(both[0], &[1], vec![1.0]), norm.clone(), (both[1], &[1], vec![2.0])]);
    let checkpoint = Checkpoint::from_bytes("tied", bytes).unwrap();
    assert_eq!(names(&checkpoint), ["blocks.0.norm1.weight", "token_embedding.weight"]);
    assert_eq!(values(checkpoint, "token_embedding.weight"), [2.0], "shared.weight wins");
    let alone = Checkpoint::from_bytes("one", safetensors(&[(both[0], &[1], vec![1.0]), norm]));
    assert_eq!(values(alone.unwrap(), "token_embedding.weight"), [1.0]);
}

#[test]
fn two_tensors_of_one_name_are_an_error() {
    let bytes = safetensors(&[("model.a", &[1], vec![1.0]), ("a", &[1], vec![2.0])]);
    let error = Checkpoint::from_bytes("twice", bytes).unwrap_err().to_string();
    assert!(error.starts_with("twice: two tensors are a, one of them as "), "{error}");
}

// PyTorch -----------------------------------------------------------------------------------------

#[test]
fn a_pytorch_file_gives_its_best_dict() {
    let open = || Checkpoint::open(fixture("nested.pt")).unwrap();
    let want: BTreeMap<&str, (&[usize], Vec<f32>)> = BTreeMap::from([
        ("blocks.0.ffn.0.bias", (&[3][..], vec![0.5, -1.25, 3.0])),
        ("blocks.0.ffn.0.weight", (&[3, 4], (0..12).map(|x| x as f32).collect())),
        ("blocks.0.norm3.weight", (&[2], vec![1.0, 2.0])),
        ("double", (&[1, 2], vec![1.5, 2.5])),
        ("empty", (&[0, 3], vec![])),
        ("gaps", (&[4], vec![1.0, 4.0, 7.0, 10.0])),
        ("scalar", (&[], vec![7.0])),
        ("transposed", (&[4, 3], vec![0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.])),
    ]);
    assert_eq!(names(&open()), want.keys().copied().collect::<Vec<_>>());
    for (tensor, (shape, _)) in open().tensors().zip(want.values()) {
        assert_eq!(tensor.shape, *shape, "{}", tensor.name);
        assert_eq!(tensor.file, fixture("nested.pt"));
    }
    for (name, (_, want)) in want {
        assert_eq!(values(open(), name), want, "{name}");
    }
}

#[test]
fn nested_dicts_give_dotted_names() {
    let checkpoint = Checkpoint::open(fixture("flat.pt")).unwrap();
    assert_eq!(names(&checkpoint), ["a", "deep.3", "deep.er.b"]);
    assert_eq!(values(checkpoint, "deep.er.b"), [0.0, 1.0]);
}

#[test]
fn a_hostile_pickle_is_refused_by_name() {
    let error = Checkpoint::open(fixture("hostile.pt")).unwrap_err().to_string();
    assert!(error.contains("hostile.pt: ") && error.contains("system`"), "{error}");
}

/// All tensors, in f32.
fn contents(checkpoint: &Checkpoint) -> BTreeMap<String, (StoredDtype, Vec<usize>, Vec<f32>)> {
    let content = |name: &String| values(checkpoint.clone(), name);
    let tensors = checkpoint.tensors().map(|tensor| {
        let name = tensor.name.to_owned();
        let values = content(&name);
        (name, (tensor.dtype, tensor.shape.to_vec(), values))
    });
    tensors.collect()
}

#[test]
fn an_old_file_holds_what_an_archive_of_the_same_does() {
    let [old, archive] =
        ["old_nested.pt", "nested.pt"].map(|name| Checkpoint::open(fixture(name)).unwrap());
    assert_eq!(contents(&old), contents(&archive));
    assert_eq!(old.tensors().count(), 8);
    let bytes = std::fs::read(fixture("old_nested.pt")).unwrap();
    let in_memory = Checkpoint::from_bytes("old", bytes).unwrap();
    assert_eq!(contents(&in_memory), contents(&archive));
}

#[test]
fn storages_that_no_tensor_uses_are_stepped_over() {
    let old = Checkpoint::open(fixture("old.pt")).unwrap();
    assert_eq!(names(&old), ["weight"]);
    assert_eq!(values(old, "weight"), [3., 4., 5., 6., 7., 8., 9., 10., 11.]);
}

/// `bytes` with their one `from` replaced.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    let [at] = places[..] else { panic!("{from:?} is at {places:?}") };
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn an_old_file_that_is_not_sound_is_refused_with_what_was_expected() {
    let file = old(&[shape("w", &[2, 2])], &["0"], &[4]);
    assert_eq!(names(&Checkpoint::from_bytes("old", file.clone()).unwrap()), ["w"]);
    let number = "expected the magic number 0x1950a86a20f9469cfc6c of a PyTorch file, got \
                  0x1950a86a20f9469cfc6d";
    let view = "storage 0 is a view of another one, expected a whole one";
    for (bytes, reason) in [
        (replaced(&file, b"\x8a\x0a\x6c", b"\x8a\x0a\x6d"), number),
        (replaced(&file, b"M\xe9\x03.", b"M\xea\x03."), "of protocol 1001, got 1002"),
        (replaced(&file, b"M\xe9\x03.", b"N."), "of protocol 1001, got no number"),
        (replaced(&file, b"endian\x88", b"endian\x89"), "little-endian numbers, got big-endian"),
        (replaced(&file, b"endian\x88", b"endiaN\x88"), "got a file that does not say"),
        (replaced(&file, b"J\x04\0\0\0Nt", b"J\x04\0\0\0)t"), view),
        (replaced(&file, b"](", b"}("), "is no list"),
        (replaced(&file, b"](", b"N.]("), "expected a list of storages behind the tensors"),
        (replaced(&file, b"](", b"]K\x07a("), "expected the key of a storage, got Int(7)"),
        (old(&[shape("w", &[2, 2])], &[], &[]), "w: storage 0 is missing"),
        (old(&[shape("w", &[2, 2])], &["1"], &[4]), "storage 1 has no element type"),
        (old(&[shape("w", &[2, 2])], &["0", "0"], &[4, 4]), "storage 0 is listed twice"),
        (old(&[shape("w", &[2, 2])], &["0"], &[3]), "storage 0: expected 4 elements, got 3"),
        (old(&[shape("w", &[2, 2])], &["0"], &[-1]), "storage 0: expected 4 elements, got -1"),
        (replaced(&file, b"ctorch\nBF", b"cposix\nBF"), "asks for `posix.BFloat16Storage`"),
    ] {
        let error = Checkpoint::from_bytes("old", bytes).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error}");
        assert!(error.to_string().contains(reason), "expected {reason}, got {error}");
    }
}

#[test]
fn an_old_file_cut_short_is_refused_wherever_it_ends() {
    let file = std::fs::read(fixture("old_nested.pt")).unwrap();
    for len in 0..file.len() {
        let error = Checkpoint::from_bytes("cut", file[..len].to_vec()).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error}");
        if len + 8 > file.len() {
            assert!(error.to_string().contains("the file ends "), "{error}");
        }
    }
}

// Folders and shards ------------------------------------------------------------------------------

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    put("m-1.safetensors", &safetensors(&[("model.a", &[2], vec![1.0, 2.0])]));
    put("m-2.safetensors", &safetensors(&[("model.b", &[1], vec![3.0])]));
    let twins = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(twins.contains("more than one checkpoint"), "{twins}");

    let index =
        |b: &str| format!(r#"{{"weight_map":{{"model.a":"m-1.safetensors","model.b":{b:?}}}}}"#);
    let path = "m.safetensors.index.json";
    put(path, index("m-2.safetensors").as_bytes());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(names(&checkpoint), ["a", "b"]);
    assert_eq!(values(checkpoint, "b"), [3.0]);
    for (shard, complaint) in [
        ("m-1.safetensors", "model.b is not in the shard"),
        ("../m-2.safetensors", "not the name of a file beside it"),
        ("m-3.safetensors", "cannot be read"),
    ] {
        put(path, index(shard).as_bytes());
        let error = Checkpoint::open(folder.path().join(path)).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
fn an_empty_folder_and_a_missing_file_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("file in the folder, got none"), "{error}");
    let missing = Checkpoint::open(folder.path().join("none.pt")).unwrap_err();
    assert!(matches!(missing, Error::Open { .. }), "{missing}");
}

// Checks ------------------------------------------------------------------------------------------

fn shape(name: &str, shape: &[usize]) -> TensorShape {
    TensorShape { name: name.into(), shape: shape.into() }
}

/// As of a quantised file: before anything is loaded.
#[test]
fn whole_numbers_are_no_weights() {
    let bytes =
        safetensors_with(&[], &[("a", StoredDtype::I8, &[1, 2]), ("b", StoredDtype::I64, &[0; 8])]);
    let checkpoint = Checkpoint::from_bytes("file", bytes).unwrap();
    let error = checkpoint.check(&[shape("a", &[2])], &[shape("b", &[1])]).unwrap_err();
    assert_eq!(error.to_string(), "file: a: expected floating point, got I8");
}

#[test]
fn a_mismatch_lists_everything_at_once() {
    let bytes = safetensors(&[("a", &[2], vec![0.0; 2]), ("b", &[1, 2], vec![0.0; 2])]);
    let checkpoint = Checkpoint::from_bytes("file", bytes).unwrap();
    checkpoint.check(&[shape("a", &[2])], &[shape("b", &[9])]).unwrap();
    let error = checkpoint.check(&[shape("a", &[3]), shape("c", &[4])], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "file: 1 tensor missing (c [4]); 1 tensor not expected (b [1, 2]); \
         1 tensor of another shape (a: expected [3], got [2])"
    );
}

#[test]
fn a_vocabulary_among_the_weights_is_none_too_many() {
    let weight = || ("token_embedding.weight", &[1][..], vec![1.0]);
    let check = |other: &str| {
        let bytes = safetensors_with(&[weight()], &[(other, StoredDtype::U8, b"abc")]);
        let checkpoint = Checkpoint::from_bytes("umt5", bytes).unwrap();
        checkpoint.check(&[shape("token_embedding.weight", &[1])], &[])
    };
    check("spiece_model").unwrap();
    for other in ["scaled_fp8", "token_embedding.scale_weight", "spiece_models", "spiece_model.a"] {
        let error = check(other).unwrap_err().to_string();
        let expected = format!("umt5: 1 tensor not expected ({other} [3])");
        assert_eq!(error, expected);
    }
}

#[test]
fn long_lists_are_cut() {
    let checkpoint = named(&["x".to_owned()]);
    let expected: Vec<_> = (0..9).map(|i| shape(&format!("t{i}"), &[1])).collect();
    let error = checkpoint.check(&expected, &[shape("x", &[1])]).unwrap_err().to_string();
    assert!(error.starts_with("names: 9 tensors missing (t0 [1], "), "{error}");
    assert!(error.ends_with("t3 [1], and 5 more)"), "{error}");
}

#[test]
fn what_a_network_asks_for_costs_nothing() {
    let asked = requested(|vb| {
        let huge = vb.pp("blocks.0").get((1 << 30, 1 << 10), "weight")?;
        assert_eq!(huge.dims(), [1 << 30, 1 << 10]);
        vb.get(3, "bias")?;
        vb.get(3, "bias")
    });
    let want = [shape("blocks.0.weight", &[1 << 30, 1 << 10]), shape("bias", &[3])];
    assert_eq!(asked.unwrap(), want);
}

#[test]
fn an_interrupt_and_a_wrong_shape_stop_loading() {
    let interrupt = Interrupt::default();
    let bytes = safetensors(&[("a", &[2], vec![1.0, 2.0])]);
    let checkpoint = Checkpoint::from_bytes("file", bytes).unwrap();
    let vb = checkpoint.with_interrupt(interrupt.clone()).var_builder(DType::BF16, &Device::Cpu);
    assert_eq!(vb.get(2, "a").unwrap().dtype(), DType::BF16);
    let error = vb.get(3, "a").unwrap_err().to_string();
    assert!(error.contains("a: expected [3], got [2]"), "{error}");
    interrupt.raise();
    assert!(vb.get(2, "a").unwrap_err().to_string().contains("interrupted"));
}

// LoRA --------------------------------------------------------------------------------------------

fn base() -> Checkpoint {
    let weight = ("model.blocks.0.ffn.0.weight", &[3, 4][..], (0..12).map(|x| x as f32).collect());
    Checkpoint::from_bytes("base", safetensors(&[weight, ("model.b", &[1], vec![5.0])])).unwrap()
}

/// `base` plus `scale · B·A` of the fixture.
fn merged(scale: f32) -> Vec<f32> {
    let product = [1., 2., 3., 4., 0., 2., 0., -2., -1., -1., -3., -5.];
    (0..12).map(|i| i as f32 + scale * product[i]).collect()
}

#[test]
fn a_lora_is_added_where_it_belongs() {
    let one = base().with_lora(fixture("lora.pt"), 0.5).unwrap();
    assert_eq!(values(one.clone(), "blocks.0.ffn.0.weight"), merged(0.5));
    assert_eq!(values(one.clone(), "b"), [5.0]);
    let two = one.with_lora(fixture("lora.pt"), 1.0).unwrap();
    assert_eq!(values(two, "blocks.0.ffn.0.weight"), merged(1.5));
}

#[test]
fn alpha_over_rank_scales_a_lora() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let name = |part: &str| format!("diffusion_model.blocks.0.ffn.0.{part}");
    let (down, up, alpha) = (name("lora_down.weight"), name("lora_up.weight"), name("alpha"));
    let down = (down.as_str(), &[2, 4][..], vec![1., 2., 3., 4., 0., 1., 0., -1.]);
    let up = (up.as_str(), &[3, 2][..], vec![1., 0., 0., 2., -1., 1.]);
    let bytes = safetensors(&[down.clone(), up.clone(), (&alpha, &[], vec![6.0])]);
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = base().with_lora(&path, 0.25).unwrap();
    assert_eq!(values(checkpoint, "blocks.0.ffn.0.weight"), merged(0.25 * 6.0 / 2.0));
    for (dtype, six) in [
        (StoredDtype::I64, &6i64.to_le_bytes()[..]),
        (StoredDtype::I32, &6i32.to_le_bytes()),
        (StoredDtype::F16, &[0, 0x46]),
    ] {
        let bytes = safetensors_with(&[down.clone(), up.clone()], &[(&alpha, dtype, six)]);
        std::fs::write(&path, bytes).unwrap();
        let checkpoint = base().with_lora(&path, 0.25).unwrap();
        assert_eq!(values(checkpoint, "blocks.0.ffn.0.weight"), merged(0.75), "{dtype:?}");
    }
    for (dtype, wrong) in [(StoredDtype::I64, &[0; 16][..]), (StoredDtype::U8, &[6])] {
        let bytes = safetensors_with(&[down.clone(), up.clone()], &[(&alpha, dtype, wrong)]);
        std::fs::write(&path, bytes).unwrap();
        let error = base().with_lora(&path, 0.25).unwrap_err().to_string();
        assert!(error.contains("cannot be read: expected "), "{error}");
    }
}

#[test]
fn all_that_does_not_fit_of_a_lora_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let name = |part: &str| format!("diffusion_model.blocks.0.ffn.0.{part}");
    let (down, up) = (name("lora_down.weight"), name("lora_up.weight"));
    let odd = [
        (down.as_str(), &[2, 4][..], vec![0.0; 8]),
        (up.as_str(), &[2, 2], vec![0.0; 4]),
        ("elsewhere.lora_A.weight", &[1, 1], vec![0.0]),
        ("blocks.0.diff_b", &[1], vec![0.0]),
    ];
    std::fs::write(&path, safetensors(&odd)).unwrap();
    let error = base().with_lora(&path, 1.0).unwrap_err().to_string();
    assert!(error.contains("3 tensors of the LoRA do not fit"), "{error}");
    assert!(error.contains("blocks.0.diff_b: not a part of a LoRA"), "{error}");
    assert!(error.contains("expected B·A of shape [3, 4], got B [2, 2] and A [2, 4]"), "{error}");
    assert!(error.contains("elsewhere: the checkpoint has no such module"), "{error}");
    assert!(base().with_lora(fixture("lora.pt"), f64::NAN).is_err());
}

// Random weights ----------------------------------------------------------------------------------

#[test]
fn random_weights_depend_on_seed_and_name_only() {
    let get = |seed, name: &str| -> Vec<f32> {
        let vb = checkpoint::random(seed, DType::F32, &Device::Cpu);
        vb.get((300, 400), name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let weight = get(1, "a.weight");
    assert_eq!(weight, get(1, "a.weight"));
    assert_ne!(weight, get(1, "b.weight"));
    assert_ne!(weight, get(2, "a.weight"));
    let variance = weight.iter().map(|x| x * x).sum::<f32>() / weight.len() as f32;
    assert!((variance * 400.0 - 1.0).abs() < 0.03, "{variance}");
    let vb = checkpoint::random(1, DType::F32, &Device::Cpu);
    let norm: Vec<f32> = vb.get(5, "norm.weight").unwrap().to_vec1().unwrap();
    assert_eq!(norm, [1.0; 5]);
    let bias: Vec<f32> = vb.get(500, "bias").unwrap().to_vec1().unwrap();
    assert!(bias.iter().all(|x| x.abs() < 0.2) && bias.iter().any(|x| x.abs() > 1e-3));
}

// Manifests ---------------------------------------------------------------------------------------

/// Its first bytes are those of a pickle.
#[test]
fn a_header_of_any_length_is_one() {
    let mut bytes = safetensors(&[("a", &[2], vec![1.0, 2.0])]);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes.splice(8 + length..8 + length, vec![b' '; 640 - length]);
    bytes[..8].copy_from_slice(&640u64.to_le_bytes());
    assert_eq!(bytes[..2], *b"\x80\x02");
    assert_eq!(values(Checkpoint::from_bytes("x", bytes).unwrap(), "a"), [1.0, 2.0]);
}

/// What is left was once copied for each of them: 120 GB.
#[test]
fn many_prefixes_are_taken_off_at_once() {
    let name = "model.".repeat(200_000) + "a";
    let large = ("b", &[2 << 20][..], vec![0.0; 2 << 20]); // no file is all header
    let bytes = safetensors(&[(&name, &[1], vec![0.0]), large]);
    assert_eq!(names(&Checkpoint::from_bytes("x", bytes).unwrap()), ["a", "b"]);
}

#[test]
fn every_embedded_manifest_is_sound() {
    for name in Manifest::names() {
        let manifest = Manifest::named(name).unwrap();
        assert_eq!(manifest.name, name);
        let mut files = manifest.files.iter();
        assert!(files.all(|file| file.embedded().is_some() == (name == "pocket")), "{name}");
    }
    let preset = |name: &str| Manifest::named(name).unwrap().preset;
    assert_eq!((preset("self-forcing-1.3b").window, preset("self-forcing-1.3b").sink), (6, 0));
    assert_eq!((preset("longlive-1.3b").window, preset("longlive-1.3b").sink), (2, 1));
    assert!(Manifest::named("none").unwrap_err().to_string().contains("longlive-1.3b"));
}

#[test]
fn a_manifest_is_strict() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/self-forcing-1.3b.toml");
    let text = std::fs::read_to_string(path).unwrap();
    for (from, to, complaint) in [
        ("window = 6", "windows = 6", "line 19, `windows = 6`: unknown field `windows`"),
        ("window = 6", "window = \"6\"", "line 19, `window = \"6\"`: invalid type"),
        ("window = 6", "window = 0", "preset.window: got 0, expected 1 to 1024 blocks"),
        ("size = 5676252553", "size = 0", "files[0].size: got 0, expected 1 byte to 1 TiB"),
        (
            "size = 5676252553",
            "size = 9000000000000000",
            "files[0].size: got 9000000000000000, expected",
        ),
        ("width = 832", "width = 833", "preset.width: got 833, expected a multiple of 16"),
        (
            "1000, 750",
            "750, 1000",
            "preset.denoising-steps: got [750, 1000, 500, 250], expected falling",
        ),
        ("\"Wan2.1_VAE.pth\"", "\"../VAE.pth\"", "files[1].path: got \"../VAE.pth\", expected"),
        ("role = \"vae\"", "role = \"dit\"", "files[1].role: got dit, of which"),
        ("role = \"vae\"", "role = \"decoder\"", "expected one of `dit`"),
        ("\"a0413986", "\"A0413986", "files[0].sha256"),
        ("gdhe17/Self-Forcing", "/Self-Forcing", "files[0].repo: got \"/Self-Forcing\", expected"),
        ("repo = \"gdhe17/Self-Forcing\"\n", "", "files[0].repo: got none, expected owner/name"),
        ("role = \"tokenizer\"", "role = \"lora\"", "files: expected one of role tokenizer"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = Manifest::parse(Path::new("m.toml"), &text.replacen(from, to, 1)).unwrap_err();
        assert!(error.to_string().contains(complaint), "{to}: {error}");
        assert!(error.to_string().starts_with("m.toml: "));
    }
}

#[test]
fn a_file_without_a_repository_is_one_that_is_embedded() {
    let text = include_str!("../models/pocket.toml");
    let parse = |from: &str, to: &str| Manifest::parse(Path::new("m"), &text.replacen(from, to, 1));
    let path = "path = \"pocket/dit.safetensors\"";
    let revision = format!("{path}\nrevision = \"{}\"", "0".repeat(40));
    for to in ["path = \"pocket/none.safetensors\"", "path = \"dit.safetensors\"", &revision] {
        let error = parse(path, to).unwrap_err().to_string();
        assert!(
            error.starts_with("m: files[0].repo: got none, expected owner/name, unless"),
            "{error}"
        );
    }
    let hosted = parse(path, &format!("{path}\nrepo = \"owner/name\"")).unwrap();
    assert_eq!(hosted.file(Role::Dit).unwrap().embedded(), None);
    assert_eq!(hosted.file(Role::Dit).unwrap().to_string(), "owner/name/pocket/dit.safetensors");
}

// Embedded files ----------------------------------------------------------------------------------

#[test]
fn embedded_files_are_checkpoints_like_any_other() {
    let manifest = Manifest::named("pocket").unwrap();
    let open = |role| Checkpoint::open(Place::Embedded(manifest.file(role)?.embedded()?)).ok();
    let (dit, vae) = (open(Role::Dit).unwrap(), open(Role::Vae).unwrap());
    let (sizes, latents) = (dit_config(manifest.architecture), vae_config(manifest.architecture));
    let network = requested(|vb| WanDit::new(&sizes, vb)).unwrap();
    let decoder = requested(|vb| WanDecoder::new(&latents, vb)).unwrap();
    let encoder = requested(|vb| WanEncoder::new(&latents, vb)).unwrap();
    dit.check(&network, &[]).unwrap();
    vae.check(&decoder, &encoder).unwrap();

    let error = dit.check(&decoder, &[]).unwrap_err().to_string();
    let lists = [decoder.len(), network.len()].map(|count| format!("{count} tensors "));
    let [missing, others] = lists;
    let start = format!("pocket/dit.safetensors (embedded): {missing}missing (");
    assert!(
        error.starts_with(&start) && error.contains(&format!("{others}not expected")),
        "{error}"
    );

    let vb = dit.var_builder(DType::F32, &Device::Cpu);
    let error = vb.get(3, "head.head.bias").unwrap_err().to_string();
    assert!(
        error.contains("pocket/dit.safetensors (embedded): head.head.bias: expected [3]"),
        "{error}"
    );
    assert!(
        vb.get(64, "head.head.bias").unwrap().to_vec1::<f32>().unwrap().iter().any(|x| *x != 0.0)
    );
}

// Memory ------------------------------------------------------------------------------------------

const CHILD: &str = "CHECKPOINT_TEST_CHILD";
const TENSORS: usize = 80;
const SIDE: usize = 1 << 20; // elements of a tensor: 4 MiB in f32

/// Does what the environment says and prints by how much the peak of resident memory has grown: run
/// by `grown` in a process of its own.
#[test]
#[ignore = "a part of what measures memory, in a process of its own"]
fn child_that_grows() {
    let task = std::env::var(CHILD).unwrap();
    let (task, path) = task.split_once(':').unwrap();
    let before = status("VmHWM");
    match task {
        "bf16" => load(path, DType::BF16),
        "f32" => load(path, DType::F32),
        "dit" => {
            let checkpoint = Checkpoint::open(path).unwrap();
            let lora = Path::new(path).with_file_name("lora.safetensors");
            let vb = checkpoint.with_lora(lora, 1.0).unwrap().var_builder(DType::F32, &Device::Cpu);
            let dit = WanDit::new(&medium(), vb).unwrap();
            assert_eq!(dit.spec().heads, medium().num_heads);
        }
        "open" => assert!(Checkpoint::open(path).is_err()),
        "shapes" => {
            requested(|vb| WanDecoder::new(&WanVaeConfig::wan21(), vb)).unwrap();
            requested(|vb| WanDit::new(&WanConfig::t2v_14b(), vb)).unwrap();
        }
        other => panic!("no task {other}"),
    }
    eprintln!("grown by {}", status("VmHWM") - before);
}

fn load(path: &str, dtype: DType) {
    let vb = Checkpoint::open(path).unwrap().var_builder(dtype, &Device::Cpu);
    let tensors: Vec<Tensor> =
        (0..TENSORS).map(|i| vb.get(SIDE, &format!("t{i}")).unwrap()).collect();
    assert_eq!(tensors.len(), TENSORS);
}

/// Kilobytes by which a process grows that does this with a file.
fn grown(task: &str, path: &Path) -> usize {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "child_that_grows", "--nocapture"])
        .env(CHILD, format!("{task}:{}", path.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let grown = text.lines().find_map(|line| line.strip_prefix("grown by "));
    grown.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

/// Kilobytes of one line of /proc/self/status.
fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn memory_stays_near_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    let zeros = vec![1u8; SIDE * 4];
    let view = TensorView::new(StoredDtype::F32, vec![SIDE], &zeros).unwrap();
    let views: HashMap<String, _> = (0..TENSORS).map(|i| (format!("t{i}"), view.clone())).collect();
    ::safetensors::serialize_to_file(views, None, &path).unwrap();
    for (dtype, size) in [("bf16", 2), ("f32", 4)] {
        let grown = grown(dtype, &path);
        let weights = TENSORS * SIDE * size / 1024;
        let limit = weights * 115 / 100 + SIDE * 4 / 1024;
        eprintln!("{dtype}: {grown} kB for {weights} kB of weights, at most {limit}");
        assert!(grown > weights && grown < limit, "{dtype}: {grown}, expected up to {limit}");
    }
}

/// A transformer of 170 MB in f32, 6 MB of them its largest tensor.
fn medium() -> WanConfig {
    WanConfig { dim: 512, ffn_dim: 2048, num_heads: 4, num_layers: 10, ..WanConfig::pocket() }
}

/// What `torch.save` makes of bf16 tensors of these shapes, all numbers the same.
fn torch(tensors: &[TensorShape]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (i, tensor) in tensors.iter().enumerate() {
        zip.start_file(format!("archive/data/{i}"), stored()).unwrap();
        zip.write_all(&vec![0x3c; 2 * count(tensor)]).unwrap();
    }
    zip.start_file("archive/data.pkl", stored()).unwrap();
    zip.write_all(&pickle(tensors, b"")).unwrap();
    zip.finish().unwrap().into_inner()
}

fn count(tensor: &TensorShape) -> usize {
    tensor.shape.iter().product()
}

/// What it made of them before it wrote archives, with these storages and their counts behind the
/// tensors.
fn old(tensors: &[TensorShape], keys: &[&str], counts: &[i64]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    file.extend(b"\x80\x02M\xe9\x03.\x80\x02}");
    text(&mut file, "little_endian");
    file.extend(b"\x88s.");
    file.extend(pickle(tensors, b"N"));
    file.extend(b"\x80\x02](");
    keys.iter().for_each(|key| text(&mut file, key));
    file.extend(b"e.");
    for &count in counts {
        file.extend(count.to_le_bytes());
        file.resize(file.len() + 2 * count.max(0) as usize, 0x3c);
    }
    file
}

/// A dict of tensors, each of a storage of its own; `view` is what else is said of it.
fn pickle(tensors: &[TensorShape], view: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (i, TensorShape { name, shape }) in tensors.iter().enumerate() {
        let count = shape.iter().product();
        let strides = (1..=shape.len()).map(|axis| shape[axis..].iter().product());
        text(&mut pickle, name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend(b"ctorch\nBFloat16Storage\n");
        text(&mut pickle, &i.to_string());
        text(&mut pickle, "cpu");
        numbers(&mut pickle, [count]);
        pickle.extend(view);
        pickle.extend(b"tQK\0(");
        numbers(&mut pickle, shape.iter().copied());
        pickle.extend(b"t(");
        numbers(&mut pickle, strides);
        pickle.extend(b"t\x89}tR");
    }
    pickle.extend(b"u.");
    pickle
}

fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

fn numbers(pickle: &mut Vec<u8>, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        pickle.push(b'J');
        pickle.extend((number as u32).to_le_bytes());
    }
}

fn stored() -> zip::write::SimpleFileOptions {
    zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored)
}

/// A LoRA of rank 8 on every matrix of the layers.
fn lora(tensors: &[TensorShape]) -> Vec<u8> {
    let matrices = tensors.iter().filter_map(|TensorShape { name, shape }| match shape[..] {
        [out, width] if name.starts_with("blocks.") => {
            Some((name.strip_suffix(".weight")?, out, width))
        }
        _ => None,
    });
    let halves = matrices.flat_map(|(name, out, width)| {
        let half = |half: &str, shape: [usize; 2]| (format!("{name}.{half}.weight"), shape);
        [half("lora_A", [8, width]), half("lora_B", [out, 8])]
    });
    let halves: Vec<_> = halves.collect();
    assert_eq!(halves.len(), 2 * 10 * medium().num_layers);
    let tensors: Vec<_> = halves
        .iter()
        .map(|(name, shape)| (name.as_str(), &shape[..], vec![0.5; shape[0] * shape[1]]))
        .collect();
    safetensors(&tensors)
}

#[test]
#[cfg(target_os = "linux")]
fn a_network_from_a_pytorch_file_with_a_lora_stays_near_its_weights() {
    let tensors = requested(|vb| WanDit::new(&medium(), vb)).unwrap();
    let bytes = |tensor: &TensorShape| 4 * count(tensor);
    let weights = tensors.iter().map(bytes).sum::<usize>() >> 10;
    let largest = tensors.iter().map(bytes).max().unwrap() >> 10;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dit.pt");
    std::fs::write(path.with_file_name("lora.safetensors"), lora(&tensors)).unwrap();
    let keys: Vec<_> = (0..tensors.len()).map(|i| i.to_string()).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let counts: Vec<_> = tensors.iter().map(|tensor| count(tensor) as i64).collect();
    for file in [torch(&tensors), old(&tensors, &keys, &counts)] {
        std::fs::write(&path, file).unwrap();
        let (grown, limit) = (grown("dit", &path), weights * 115 / 100 + largest);
        eprintln!("{grown} kB for {weights} kB of weights, at most {limit}");
        assert!(grown > weights && grown < limit, "{grown} kB, expected {weights} to {limit}");
    }
}

/// An archive as torch.save writes it, of a pickle and nothing that it refers to.
fn archive(pickle: &[u8], more_entries: usize) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("archive/data.pkl", stored()).unwrap();
    zip.write_all(pickle).unwrap();
    (0..more_entries).for_each(|i| zip.start_file(format!("{i}"), stored()).unwrap());
    zip.finish().unwrap().into_inner()
}

fn repeated(opcodes: &[u8], count: usize) -> Vec<u8> {
    archive(&[b"\x80\x02", &opcodes.repeat(count)[..], b"."].concat(), 0)
}

/// Whatever a file describes, opening it takes no more memory than its size; 4 MiB for a small one.
/// Its bytes are mapped besides.
#[test]
#[cfg(target_os = "linux")]
fn memory_stays_below_the_size_of_a_hostile_file() {
    let memo = (0..500_000u32).flat_map(|key| [&b"Nr"[..], &key.to_le_bytes()].concat());
    let tensor = |i: usize| format!(r#""{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let header = format!("{{{}}}", (0..200_000).map(tensor).collect::<Vec<_>>().join(","));
    let tensors = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let index = (0..400_000).map(|i| format!(r#""{i}":"""#)).collect::<Vec<_>>().join(",");
    let index = format!(r#"{{"weight_map":{{{index}}}}}"#).into_bytes();
    let mut keys = old(&[], &[], &[]);
    keys.truncate(keys.len() - 3); // an empty list
    keys.extend(b"Na".repeat(900_000));
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("keys.pt", keys),
        ("tuples.pt", repeated(b")", 2_000_000)),
        ("dicts.pt", repeated(b"}", 2_000_000)),
        ("memo.pt", archive(&[b"\x80\x02", &memo.collect::<Vec<_>>()[..]].concat(), 0)),
        ("entries.pt", archive(b"\x80\x02}.", 60_000)),
        ("tensors.safetensors", tensors),
        ("m.safetensors.index.json", index),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let (size, grown) = (bytes.len() >> 10, grown("open", &path));
        let limit = size + size.max(4 << 10) + (4 << 10);
        eprintln!("{name}: {grown} kB for a file of {size} kB");
        assert!(grown < limit, "{name} of {size} kB: {grown}, expected up to {limit}");
    }
    let shapes = grown("shapes", Path::new(""));
    assert!(shapes < 16 << 10, "shapes alone take {shapes} kB");
}

// Damage ------------------------------------------------------------------------------------------

/// Opens damaged bytes and reads whatever tensors they seem to have: anything but a panic is right.
fn try_all(bytes: Vec<u8>) {
    let Ok(checkpoint) = Checkpoint::from_bytes("damaged", bytes) else { return };
    let names = names(&checkpoint);
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu);
    for name in names {
        let _ = vb.get_unchecked(&name);
    }
}

fn damaged(mut bytes: Vec<u8>, flips: &[(prop::sample::Index, u8)], keep: usize) -> Vec<u8> {
    for (at, value) in flips {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    bytes.truncate(keep.min(bytes.len()));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_files_never_panic(
        which in 0..5usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep in prop_oneof![Just(usize::MAX), 0..4000usize],
    ) {
        let bytes = match which {
            0 => safetensors(&[("a", &[2, 3], vec![1.0; 6]), ("b", &[], vec![1.0])]),
            1 => std::fs::read(fixture("nested.pt")).unwrap(),
            2 => std::fs::read(fixture("flat.pt")).unwrap(),
            3 => std::fs::read(fixture("old_nested.pt")).unwrap(),
            _ => std::fs::read(fixture("lora.pt")).unwrap(),
        };
        try_all(damaged(bytes, &flips, keep));
    }

    #[test]
    fn damaged_manifests_and_indices_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep in prop_oneof![Just(usize::MAX), 0..3000usize],
    ) {
        let text = include_bytes!("../models/longlive-1.3b.toml").to_vec();
        let text = damaged(text, &flips, keep);
        let _ = Manifest::parse(Path::new("damaged"), &String::from_utf8_lossy(&text));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors.index.json");
        let index = br#"{"metadata":{"total_size":4},"weight_map":{"a":"m-1.safetensors"}}"#;
        std::fs::write(&path, damaged(index.to_vec(), &flips, keep)).unwrap();
        let shard = safetensors(&[("a", &[1], vec![1.0]), ("b", &[1], vec![1.0])]);
        std::fs::write(folder.path().join("m-1.safetensors"), shard).unwrap();
        let opened = Checkpoint::open(&path);
        if flips.is_empty() && keep == usize::MAX {
            prop_assert_eq!(names(&opened.unwrap()), ["a"], "the whole index opens");
        }
    }
}
