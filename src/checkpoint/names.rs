//! The one place where tensor names change: whatever a file calls a tensor, from here on it has
//! the name that the original Wan 2.1 code gives it (`WanModel`, `WanVAE_`, `T5Encoder`).
//!
//! Names differ between layouts, shapes do not: diffusers' VAE keeps `gamma` as `(C, 1, 1, 1)` and
//! its convolutions five-dimensional, so no tensor is reshaped.

/// Left inside names by wrappers of training, anywhere.
const WRAPPERS: [&str; 3] = ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."];

/// In front of all names of a file, the longest first; more than one may be there.
const PREFIXES: [&str; 6] = [
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "module.",
    "model.",
];

/// Who named the tensors of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Upstream,
    /// diffusers' `WanTransformer3DModel`.
    DiffusersDit,
    /// diffusers' `AutoencoderKLWan`.
    DiffusersVae,
    /// transformers' `UMT5EncoderModel`.
    Umt5,
}

type Renames = &'static [(&'static str, &'static str)];

const DIT: Renames = &[
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
];

/// Below `blocks.{i}`. diffusers counts its norms in order of use, hence its second is upstream's
/// `norm3`, the only one with weights.
const DIT_LAYER: Renames = &[
    ("scale_shift_table", "modulation"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("norm2", "norm3"),
    ("attn1.to_q", "self_attn.q"),
    ("attn1.to_k", "self_attn.k"),
    ("attn1.to_v", "self_attn.v"),
    ("attn1.to_out.0", "self_attn.o"),
    ("attn1", "self_attn"),
    ("attn2.to_q", "cross_attn.q"),
    ("attn2.to_k", "cross_attn.k"),
    ("attn2.to_v", "cross_attn.v"),
    ("attn2.to_out.0", "cross_attn.o"),
    ("attn2", "cross_attn"),
];

const VAE: Renames = &[("quant_conv", "conv1"), ("post_quant_conv", "conv2")];

/// Below `encoder` or `decoder`.
const VAE_SIDE: Renames = &[
    ("conv_in", "conv1"),
    ("norm_out", "head.0"),
    ("conv_out", "head.2"),
    ("mid_block.attentions.0", "middle.1"),
];

/// Below a residual block; what a resampling block holds (`resample.1`, `time_conv`) is not here
/// because both call it the same.
const VAE_RESIDUAL: Renames = &[
    ("norm1", "residual.0"),
    ("conv1", "residual.2"),
    ("norm2", "residual.3"),
    ("conv2", "residual.6"),
    ("conv_shortcut", "shortcut"),
];

const UMT5: Renames = &[
    ("shared", "token_embedding"),
    ("encoder.embed_tokens", "token_embedding"),
    ("encoder.final_layer_norm", "norm"),
];

/// Below `encoder.block.{i}.layer`.
const UMT5_LAYER: Renames = &[
    ("0.layer_norm", "norm1"),
    ("0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("0.SelfAttention", "attn"),
    ("1.layer_norm", "norm2"),
    ("1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("1.DenseReluDense.wi_1", "ffn.fc1"),
    ("1.DenseReluDense.wo", "ffn.fc2"),
];

/// Turns the names of one file into upstream's, in the same order.
///
/// All names are needed at once: `blocks.0.norm2.weight` alone may belong to either of two layouts.
pub(super) fn upstream<S: AsRef<str>>(names: &[S]) -> Vec<String> {
    let bare: Vec<String> = names.iter().map(|name| bare(name.as_ref())).collect();
    let layout = Layout::of(&bare);
    bare.into_iter().map(|name| layout.rename(&name).unwrap_or(name)).collect()
}

/// Whether `name` is one of a file's two names for one tensor: transformers saves the embedding
/// also under its encoder.
pub(super) fn is_tied_copy(name: &str) -> bool {
    bare(name) == "encoder.embed_tokens.weight"
}

/// Whether `name` is no weight: ComfyUI keeps the vocabulary of umT5 in the file of its weights.
pub(super) fn is_vocabulary(name: &str) -> bool {
    name == "spiece_model"
}

/// The name without what training wrappers and toolkits put around it.
fn bare(name: &str) -> String {
    let mut name = name.to_owned();
    for wrapper in WRAPPERS {
        name = name.replace(wrapper, "");
    }
    let mut bare = name.as_str();
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| bare.strip_prefix(prefix)) {
        bare = rest;
    }
    bare.to_owned()
}

impl Layout {
    fn of(names: &[String]) -> Self {
        let any = |part: &str| names.iter().any(|name| name.contains(part));
        if any("condition_embedder.") || any(".attn1.") || any(".attn2.") {
            Self::DiffusersDit
        } else if any("quant_conv.") || any(".mid_block.") {
            Self::DiffusersVae
        } else if any("encoder.block.") {
            Self::Umt5
        } else {
            Self::Upstream
        }
    }

    /// `None` when the name stays.
    fn rename(self, name: &str) -> Option<String> {
        match self {
            Self::Upstream => None,
            Self::DiffusersDit => match indexed(name, "blocks.") {
                Some((i, rest)) => Some(format!("blocks.{i}.{}", renamed(rest, DIT_LAYER)?)),
                None => renamed(name, DIT),
            },
            Self::DiffusersVae => vae(name),
            Self::Umt5 => match indexed(name, "encoder.block.") {
                Some((i, rest)) => {
                    let rest = renamed(rest.strip_prefix("layer.")?, UMT5_LAYER)?;
                    Some(format!("blocks.{i}.{rest}"))
                }
                None => renamed(name, UMT5),
            },
        }
    }
}

fn vae(name: &str) -> Option<String> {
    let Some((side, rest)) = name.split_once('.') else { return renamed(name, VAE) };
    if !matches!(side, "encoder" | "decoder") {
        return renamed(name, VAE);
    }
    let rest = renamed(rest, VAE_SIDE).or_else(|| vae_block(rest))?;
    Some(format!("{side}.{rest}"))
}

/// Upstream numbers all blocks of a side in one flat list. So does diffusers' encoder; its decoder
/// has stages of three residual blocks and, but for the last, an upsampler.
fn vae_block(name: &str) -> Option<String> {
    let (list, index, rest) = if let Some((i, rest)) = indexed(name, "mid_block.resnets.") {
        ("middle", i.checked_mul(2)?, rest)
    } else if let Some((i, rest)) = indexed(name, "down_blocks.") {
        ("downsamples", i, rest)
    } else {
        let (stage, rest) = indexed(name, "up_blocks.")?;
        let (place, rest) = match rest.strip_prefix("upsamplers.0.") {
            Some(rest) => (3, rest),
            None => indexed(rest, "resnets.").filter(|(place, _)| *place < 3)?,
        };
        ("upsamples", stage.checked_mul(4)?.checked_add(place)?, rest)
    };
    let rest = renamed(rest, VAE_RESIDUAL).unwrap_or_else(|| rest.to_owned());
    Some(format!("{list}.{index}.{rest}"))
}

/// The number after `prefix` and what follows its dot.
fn indexed<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (index, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

/// The name with its first whole parts exchanged, by the first row that fits.
fn renamed(name: &str, renames: Renames) -> Option<String> {
    renames.iter().find_map(|(from, to)| {
        let rest = name.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str) -> String {
        upstream(&[name]).remove(0)
    }

    #[test]
    fn prefixes_of_every_checkpoint_go() {
        for name in [
            "model.blocks.0.ffn.0.weight",
            "model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.ffn.0.weight",
            "module._orig_mod.model.blocks.0.ffn.0.weight",
            "model.diffusion_model.blocks.0.ffn.0.weight",
            "diffusion_model.blocks.0.ffn.0.weight",
            "base_model.model.blocks.0.ffn.0.weight",
            "base_model.model.model.blocks.0.ffn.0.weight",
        ] {
            assert_eq!(one(name), "blocks.0.ffn.0.weight", "{name}");
        }
    }

    #[test]
    fn norm2_is_renamed_only_where_diffusers_wrote_it() {
        assert_eq!(one("blocks.3.norm2.weight"), "blocks.3.norm2.weight");
        let names = ["blocks.3.norm2.weight", "blocks.3.attn1.to_q.weight"];
        assert_eq!(upstream(&names), ["blocks.3.norm3.weight", "blocks.3.self_attn.q.weight"]);
    }

    #[test]
    fn absurd_indices_change_nothing() {
        let huge = format!("decoder.up_blocks.{}.resnets.2.conv1.weight", usize::MAX);
        assert_eq!(upstream(&[huge.as_str(), "quant_conv.bias"]), [huge.as_str(), "conv1.bias"]);
    }
}
