//! Denoising steps as an argument.

use std::str::FromStr;

/// Numbers with commas between them; none is a list that the library refuses.
#[derive(Clone, Debug)]
pub struct Steps(pub Vec<u32>);

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let steps = text.split(',').map(str::trim).filter(|step| !step.is_empty());
        let parse =
            |step: &str| step.parse().map_err(|_| format!("{step:?} is not a whole number"));
        steps.map(parse).collect::<Result<_, _>>().map(Self)
    }
}
