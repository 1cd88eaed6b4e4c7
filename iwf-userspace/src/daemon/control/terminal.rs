//! What LAN hosts have written, on its way to a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character does something to a terminal, or to how what stands around it is read: controls, marks of
/// direction, separators of lines, and what is not seen at all. Joiners are none of them: scripts need them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// A mark in the place of each character that is left out.
fn marked(text: &str, is_left_out: impl Fn(char) -> bool + Copy) -> Cow<'_, str> {
    if !text.contains(is_left_out) {
        return text.into();
    }
    let seen = |c| if is_left_out(c) { '\u{fffd}' } else { c };
    text.chars().map(seen).collect()
}

/// What a control point wrote, without what would move the cursor of a terminal or turn round what stands beside it.
pub(super) fn printable(text: &str) -> String {
    marked(text, is_unsafe).into_owned()
}

/// An answer in lines, without such characters.
pub fn lines(text: &str) -> Cow<'_, str> {
    marked(text, |c| is_unsafe(c) && c != '\n')
}

/// The same JSON, with such characters as escapes: they stand in strings only.
pub fn json(text: &str) -> Cow<'_, str> {
    let is_escaped = |c| is_unsafe(c) && c != '\n';
    if !text.contains(is_escaped) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if !is_escaped(c) {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(escaped, "\\u{unit:04x}").expect("writing to memory does not fail");
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clear screen of eight bits, right to left, a line that is none, a mark of byte order, a tag.
    const HOSTILE: &str =
        "a\u{1b}[2J\u{9b}2J\u{7f}\u{202e}b\u{2066}\u{2028}\u{85}\u{feff}\u{e0041}c";

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        let shown =
            "a\u{fffd}[2J\u{fffd}2J\u{fffd}\u{fffd}b\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}c";
        assert_eq!(printable(HOSTILE), shown);
        assert_eq!(printable("one\ntwo"), "one\u{fffd}two");
        assert_eq!(lines(&format!("{HOSTILE}\nnext")), format!("{shown}\nnext"));
        for harmless in ["bücher 本", "می\u{200c}خواهم", "👩\u{200d}🚀", ""] {
            assert_eq!(printable(harmless), harmless);
            assert!(matches!(lines(harmless), Cow::Borrowed(text) if text == harmless));
        }
    }

    #[test]
    fn json_says_the_same_without_them() {
        let line = serde_json::to_string(&[HOSTILE]).unwrap() + "\n";
        let escaped = json(&line);
        assert!(!escaped.trim_end().contains(is_unsafe), "{escaped}");
        assert_eq!(
            serde_json::from_str::<[String; 1]>(&escaped).unwrap(),
            [HOSTILE]
        );
        let plain = "{\"a\":\"é\"}\n";
        assert!(matches!(json(plain), Cow::Borrowed(text) if text == plain));
    }
}
