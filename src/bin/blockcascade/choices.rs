//! Arguments with the values of the library's enums.

use clap::ValueEnum;
use gstblockcascade::cascade::{AttentionMode, HistoryBudget, HistoryPolicy};
use gstblockcascade::generator;

/// An argument with the values of a library's enum, and what each becomes there.
macro_rules! mirror {
    ($(#[$docs:meta])* $name:ident => $library:ty { $($(#[$help:meta])* $value:ident,)+ }) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, Default, ValueEnum)]
        pub enum $name { $($(#[$help])* $value,)+ }

        impl From<$name> for $library {
            fn from(value: $name) -> Self {
                match value { $($name::$value => Self::$value,)+ }
            }
        }
    };
}

mirror! {
    /// What blocks in flight see of each other.
    Attention => AttentionMode {
        #[default]
        /// All of them
        Bidirectional,
        /// Only itself and older ones
        Causal,
    }
}

mirror! {
    /// What a block reads of older ones.
    History => HistoryPolicy {
        #[default]
        /// What their cache pass left of the clean block
        Clean,
        /// What they left at the same pass, as noisy as the block itself: no cache pass
        StageMatched,
    }
}

mirror! {
    /// Whether blocks in flight count against the window.
    Budget => HistoryBudget {
        #[default]
        /// They come on top of it
        History,
        /// History gives way, so that a block sees no more than it would alone
        Constant,
    }
}

mirror! {
    /// Which network makes frames of latents.
    Decoder => generator::Decoder {
        #[default]
        /// The model's own
        Full,
        /// LightVAE: the same with a quarter of the channels
        Light,
        /// TAEHV: far less work, softer pictures
        Tiny,
        /// LightTAE: as tiny, trained on the full decoder's latents
        LightTiny,
    }
}

mirror! {
    /// Number format of the networks.
    Dtype => generator::Dtype {
        #[default]
        /// f32 on a CPU, bf16 on a GPU
        Auto,
        /// 32-bit floats
        F32,
        /// 16-bit floats with the range of 32-bit ones
        Bf16,
        /// 16-bit IEEE floats
        F16,
    }
}
