//! What happens on air, for all who watch.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use gstreamer as gst;

use crate::message::State;

/// What sessions are told.
#[derive(Clone, Debug)]
pub enum News {
    Applied {
        asker: Option<Asker>,
        text: String,
        block: u64,
        latency: Duration,
        pts: gst::ClockTime,
    },
    Dropped(Asker),
    State(State),
    Trouble(String),
    /// Nothing more will come.
    End,
}

/// Whose prompt it is: a viewer's number, and that viewer's of the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub viewer: u64,
    pub id: u32,
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.viewer, self.id)
    }
}

impl FromStr for Asker {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (viewer, id) = text.split_once('/').context("expected VIEWER/ID")?;
        Ok(Self { viewer: viewer.parse()?, id: id.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asker_comes_back_as_it_went() {
        let asker = Asker { viewer: u64::MAX, id: 7 };
        assert_eq!(asker.to_string().parse::<Asker>().unwrap(), asker);
        for text in ["", "7", "7/", "/7", "-1/7", "1/4294967296"] {
            assert!(text.parse::<Asker>().is_err(), "{text}");
        }
    }
}
