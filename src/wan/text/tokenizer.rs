//! Words to token numbers, by the checkpoint's own `tokenizer.json`.

use candle_core::{Error, Result, bail};
use tokenizers::Tokenizer;

/// The token that ends every prompt.
const END: &str = "</s>";

/// A checkpoint's tokenizer, with the length its network was trained at.
#[derive(Debug)]
pub struct PromptTokenizer {
    inner: Tokenizer,
    end: u32,
    text_len: usize,
}

impl PromptTokenizer {
    /// From the contents of a `tokenizer.json`; prompts are cut to `text_len` tokens, the end
    /// included.
    pub fn from_bytes(bytes: &[u8], text_len: usize) -> Result<Self> {
        if text_len == 0 {
            bail!("text length is 0, expected room for the end of sequence")
        }
        let mut inner = Tokenizer::from_bytes(bytes).map_err(Error::wrap)?;
        inner.with_truncation(None).map_err(Error::wrap)?.with_padding(None);
        match inner.token_to_id(END) {
            Some(end) => Ok(Self { inner, end, text_len }),
            None => bail!("tokenizer has no {END} token"),
        }
    }

    /// Token numbers of a cleaned prompt, at most `text_len` of them; the last one ends it.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(prompt, true).map_err(Error::wrap)?;
        let mut ids = encoding.get_ids().to_vec();
        if ids.last() == Some(&self.end) {
            ids.pop();
        }
        ids.truncate(self.text_len - 1);
        ids.push(self.end);
        Ok(ids)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A umT5-like tokenizer of nine pieces; `post_processor` as JSON.
    fn tiny(post_processor: &str) -> Vec<u8> {
        let text = r#"{
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [
                {"id": 0, "content": "<pad>", "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false, "special": true},
                {"id": 1, "content": "</s>", "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false, "special": true}
            ],
            "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                "split": true},
            "decoder": null,
            "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": false, "vocab": [
                ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁a", -2.0], ["▁red", -3.0],
                ["▁fox", -3.0], ["▁run", -3.0], ["s", -4.0], ["▁", -5.0]]},
            "post_processor": POST
        }"#;
        text.replace("POST", post_processor).into_bytes()
    }

    const APPENDS_END: &str = r#"{"type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}}"#;

    pub fn tokenizer(post_processor: &str, text_len: usize) -> PromptTokenizer {
        PromptTokenizer::from_bytes(&tiny(post_processor), text_len).unwrap()
    }

    #[test]
    fn the_end_is_appended_once() {
        for post_processor in [APPENDS_END, "null"] {
            let tokenizer = tokenizer(post_processor, 512);
            assert_eq!(tokenizer.encode("a red fox runs").unwrap(), [3, 4, 5, 6, 7, 1]);
            assert_eq!(tokenizer.encode("").unwrap(), [1]);
        }
    }

    #[test]
    fn a_long_prompt_is_cut_and_still_ends() {
        let prompt = "fox ".repeat(20);
        for (text_len, expected) in [(4, vec![5, 5, 5, 1]), (1, vec![1])] {
            let tokenizer = tokenizer(APPENDS_END, text_len);
            assert_eq!(tokenizer.encode(prompt.trim()).unwrap(), expected);
        }
        let exact = tokenizer(APPENDS_END, 21);
        assert_eq!(exact.encode(prompt.trim()).unwrap().len(), 21);
    }

    #[test]
    fn unknown_words_become_one_unknown_token() {
        let tokenizer = tokenizer(APPENDS_END, 512);
        assert_eq!(tokenizer.encode("a 狐 fox").unwrap(), [3, 8, 2, 5, 1]);
    }

    #[test]
    fn what_is_no_tokenizer_is_refused() {
        assert!(PromptTokenizer::from_bytes(b"{}", 512).is_err());
        let endless = String::from_utf8(tiny("null")).unwrap().replace("</s>", "<end>");
        let error = PromptTokenizer::from_bytes(endless.as_bytes(), 512).unwrap_err().to_string();
        assert!(error.contains("no </s> token"), "{error}");
        assert!(PromptTokenizer::from_bytes(&tiny("null"), 0).is_err());
    }
}
