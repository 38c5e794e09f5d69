//! Prompts as they were cleaned for training: text repaired, HTML unescaped, white space collapsed.
//!
//! Upstream's `whitespace` mode:
//! <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/tokenizers.py>.

use plsfix::fix_text;

/// Characters of a prompt that are looked at. 512 tokens of at most 16 characters each are 8192, so
/// what lies beyond never reaches the network; repairing it would cost time for nothing.
const MAX_CHARS: usize = 32_768;

/// Repairs a prompt the way upstream does before it cuts it into tokens: mojibake, typographic
/// quotes, ligatures and full-width letters, terminal escapes and control characters; then HTML
/// entities, twice; then runs of white space become one space. Case and punctuation stay.
///
/// The result is that of Python's ftfy and `html.unescape`, but for two rarities: entities escaped
/// three times over in a line with a `<`, where ftfy leaves one level standing and plsfix none, and
/// numeric references to control characters, which Python drops.
pub fn clean(prompt: &str) -> String {
    let prompt = prompt.trim_start();
    let end = prompt.char_indices().nth(MAX_CHARS).map_or(prompt.len(), |(end, _)| end);
    let fixed = fix_text(&strip_terminal_escapes(&prompt[..end]), None);
    let once = htmlize::unescape(fixed);
    let twice = htmlize::unescape(once);
    twice.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Removes `ESC [ numbers letter`. plsfix means to, but has the escape character spelled wrong.
fn strip_terminal_escapes(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut parts = text.split("\u{1b}[");
    kept.extend(parts.next());
    for part in parts {
        let letter = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        match letter.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
            Some(rest) => kept.push_str(rest),
            None => kept.extend(["\u{1b}[", part]),
        }
    }
    kept
}
