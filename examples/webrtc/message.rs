//! What page and program say to each other: JSON, one object a message.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Longest message of a page, in bytes; an answer in SDP takes 3 KiB.
pub const LONGEST: usize = 32 << 10;
/// Longest prompt, in characters.
pub const LONGEST_PROMPT: usize = 1_000;
/// Longest candidate, in bytes; browsers' have about a hundred.
pub const LONGEST_CANDIDATE: usize = 512;
/// Most blocks of a transition, as of the element's property.
pub const MAX_BLOCKS: u32 = 1_024;

/// What a page asks for.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Token { token: String },
    Answer { sdp: String },
    Candidate { candidate: String },
    Prompt(Wish),
    Restart { seed: Option<u32> },
}

/// A prompt, and how it shall take over.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// The page's own number of it, given back in the answer.
    pub id: u32,
    pub text: String,
    pub policy: Policy,
    pub blocks: u32,
    pub method: Method,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    InFlight,
    NextBlock,
    Recache,
    Cut,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    Linear,
    Slerp,
}

impl Policy {
    /// As the element calls it.
    pub fn nick(self) -> &'static str {
        match self {
            Self::InFlight => "in-flight",
            Self::NextBlock => "next-block",
            Self::Recache => "recache",
            Self::Cut => "cut",
        }
    }
}

impl Method {
    /// As the element calls it.
    pub fn nick(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Slerp => "slerp",
        }
    }
}

/// What a page is told.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Reply {
    /// The first of all.
    Hello {
        model: String,
        width: u32,
        history: VecDeque<String>,
        /// Whether prompts need a token.
        guarded: bool,
        longest_prompt: usize,
    },
    Permission {
        granted: bool,
    },
    Offer {
        sdp: String,
    },
    Candidate {
        candidate: String,
        line: u32,
    },
    Asked {
        id: u32,
        text: String,
    },
    Refused {
        id: Option<u32>,
        reason: String,
    },
    Applied(Applied),
    Dropped {
        id: u32,
    },
    State(State),
    /// Something went wrong with the picture itself.
    Trouble {
        reason: String,
    },
}

/// A prompt whose first frame has left.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// For the page that asked.
    pub id: Option<u32>,
    pub text: String,
    pub block: u64,
    /// From asked to here, in milliseconds.
    pub latency: u64,
    /// The first frame's timestamp in RTP, by which a page knows it.
    pub rtp: u32,
}

/// How the stream is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct State {
    pub state: String,
    pub prompt: Option<String>,
    pub seed: Option<u64>,
    /// Frames made in the last second.
    pub made: f64,
    /// Seconds of video that could be made in a second.
    pub pace: Option<f64>,
    pub frames: u64,
    pub underruns: u64,
    pub viewers: usize,
}

/// What a message says, or what is wrong with it.
pub fn parse(text: &str) -> Result<Request, String> {
    let request = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match &request {
        Request::Prompt(wish) => check(wish)?,
        Request::Candidate { candidate } if candidate.len() > LONGEST_CANDIDATE => {
            let got = candidate.len();
            return Err(format!(
                "got a candidate of {got} bytes, expected at most {LONGEST_CANDIDATE}"
            ));
        }
        _ => {}
    }
    Ok(request)
}

fn check(wish: &Wish) -> Result<(), String> {
    let length = wish.text.chars().count();
    if wish.text.trim().is_empty() {
        return Err("got an empty prompt, expected some words".into());
    }
    if length > LONGEST_PROMPT {
        return Err(format!(
            "got a prompt of {length} characters, expected at most {LONGEST_PROMPT}"
        ));
    }
    if wish.text.contains('\0') {
        return Err("got a prompt with a NUL in it, expected text".into());
    }
    if wish.blocks > MAX_BLOCKS {
        return Err(format!(
            "got {} transition blocks, expected at most {MAX_BLOCKS}",
            wish.blocks
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(text: &str, blocks: u32) -> String {
        serde_json::json!({
            "type": "prompt", "id": 7, "text": text,
            "policy": "next-block", "blocks": blocks, "method": "slerp",
        })
        .to_string()
    }

    #[test]
    fn a_prompt_says_how_it_takes_over() {
        let expected = Wish {
            id: 7,
            text: "snow".into(),
            policy: Policy::NextBlock,
            blocks: 2,
            method: Method::Slerp,
        };
        assert_eq!(parse(&wish("snow", 2)), Ok(Request::Prompt(expected)));
    }

    #[test]
    fn a_seed_may_be_left_to_chance() {
        let parsed = |text| parse(text).unwrap();
        assert_eq!(parsed(r#"{"type":"restart"}"#), Request::Restart { seed: None });
        let seed = Some(u32::MAX);
        assert_eq!(parsed(r#"{"type":"restart","seed":4294967295}"#), Request::Restart { seed });
    }

    #[test]
    fn prompts_out_of_bounds_are_refused_with_what_is_expected() {
        let longest = "ä".repeat(LONGEST_PROMPT);
        assert!(parse(&wish(&longest, MAX_BLOCKS)).is_ok());
        for (text, blocks, expected) in [
            (" \n ", 0, "some words"),
            (&(longest + "ä"), 0, "at most 1000"),
            ("a\0b", 0, "NUL"),
            ("a", MAX_BLOCKS + 1, "at most 1024"),
        ] {
            let error = parse(&wish(text, blocks)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn candidates_are_short() {
        let candidate =
            |length| format!(r#"{{"type":"candidate","candidate":"{}"}}"#, "a".repeat(length));
        assert!(parse(&candidate(LONGEST_CANDIDATE)).is_ok());
        assert!(parse(&candidate(LONGEST_CANDIDATE + 1)).unwrap_err().contains("at most 512"));
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"type":"Prompt"}"#,
            r#"{"type":"prompt","text":"a"}"#,
            r#"{"type":"prompt","id":-1,"text":"a","policy":"cut","blocks":0,"method":"linear"}"#,
            r#"{"type":"prompt","id":1,"text":"a","policy":"now","blocks":0,"method":"linear"}"#,
            r#"{"type":"prompt","id":1,"text":"a","policy":"cut","blocks":0,"method":"linear","x":1}"#,
            r#"{"type":"restart","seed":-1}"#,
            r#"{"type":"restart","seed":4294967296}"#,
            r#"{"type":"answer","sdp":7}"#,
            r#"{"type":"candidate","candidate":"a","line":0}"#,
            r#"{"type":"token"}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"[".repeat(LONGEST)).is_err());
    }
}
