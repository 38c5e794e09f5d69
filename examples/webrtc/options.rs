//! What the program is told on its command line.

use std::net::SocketAddr;

use clap::Parser;

use crate::token::{SHORTEST, Token};

/// Where a token is looked for that is not to be read in a list of processes.
const TOKEN: &str = "BLOCKCASCADE_TOKEN";

/// Live video from prompts, in a browser.
#[derive(Debug, Parser)]
#[command(name = "webrtc")]
pub struct Options {
    /// Where the page is; beyond this machine only with a token
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// What whoever changes the prompt must know; also read from BLOCKCASCADE_TOKEN
    #[arg(long)]
    token: Option<String>,
    /// A model's name, a manifest file (.toml) or a folder of weights
    #[arg(long, default_value = "pocket")]
    pub model: String,
    /// What is shown at first
    #[arg(long, default_value = "a red ball in the desert")]
    pub prompt: String,
    /// Same seed, same frames; another one each time unless it is given
    #[arg(long, value_parser = clap::value_parser!(i64).range(0..))]
    pub seed: Option<i64>,
    /// Blocks in flight at most
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub width: u32,
    /// What to run on: auto, cpu or cuda:N, or a list with a worker for each
    #[arg(long, default_value = "auto")]
    pub devices: String,
}

/// Who would be let in that should not be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unsafe {
    #[error(
        "{0} can be reached from other machines, expected a token with it, \
         by --token or in {TOKEN}: prompts are changed by those who know it"
    )]
    NoToken(SocketAddr),
    #[error("got a token of {0} bytes, expected at least {SHORTEST}")]
    ShortToken(usize),
}

impl Options {
    /// The token that prompts need, if they need one.
    pub fn token(&self) -> Result<Option<Token>, Unsafe> {
        let token = self.token.clone().or_else(|| std::env::var(TOKEN).ok());
        match token {
            None if self.listen.ip().is_loopback() => Ok(None),
            None => Err(Unsafe::NoToken(self.listen)),
            Some(text) => Token::new(&text).map(Some).ok_or(Unsafe::ShortToken(text.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(args: &[&str]) -> Result<bool, Unsafe> {
        let args = std::iter::once(&"webrtc").chain(args);
        Options::try_parse_from(args).unwrap().token().map(|token| token.is_some())
    }

    #[test]
    fn beyond_this_machine_there_is_a_token() {
        let known = ["--token", "0123456789abcdef"];
        assert_eq!(token(&[]), Ok(false));
        assert_eq!(token(&["--listen", "[::1]:0"]), Ok(false));
        assert_eq!(token(&known), Ok(true));
        for listen in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80"] {
            let all = Err(Unsafe::NoToken(listen.parse().unwrap()));
            assert_eq!(token(&["--listen", listen]), all);
            assert_eq!(token(&["--listen", listen, known[0], known[1]]), Ok(true));
        }
    }

    #[test]
    fn a_short_token_is_refused_everywhere() {
        assert_eq!(token(&["--token", "short"]), Err(Unsafe::ShortToken(5)));
        assert_eq!(token(&["--token", ""]), Err(Unsafe::ShortToken(0)));
    }
}
