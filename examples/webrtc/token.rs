//! What whoever changes the picture must know.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Shortest token, in bytes: too many to guess.
pub const SHORTEST: usize = 16;

/// A secret, kept as its hash: nothing can print it, and all are equally long.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// `None` if it is too short.
    pub fn new(text: &str) -> Option<Self> {
        (text.len() >= SHORTEST).then(|| Self(hash(text)))
    }

    /// Takes as long for a wrong text as for the right one.
    pub fn is(&self, text: &str) -> bool {
        self.0.ct_eq(&hash(text)).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_right() {
        let token = Token::new("0123456789abcdef").unwrap();
        assert!(token.is("0123456789abcdef"));
        for wrong in ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF"] {
            assert!(!token.is(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_can_be_guessed_is_no_token() {
        assert!(Token::new("0123456789abcde").is_none());
        assert!(Token::new("").is_none());
    }

    #[test]
    fn nothing_prints_it() {
        let token = Token::new("0123456789abcdef").unwrap();
        assert_eq!(format!("{token:?}"), "Token");
    }
}
