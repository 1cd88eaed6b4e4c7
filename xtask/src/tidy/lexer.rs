//! Rust text with comments and literals blanked out, so that a check on words sees code only.

/// Which parts of a Rust file to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Code,
    LineComment,
    /// Nesting depth.
    BlockComment(u32),
    Text,
    /// Number of `#` that close it.
    RawText(usize),
}

/// `text` with every comment and the inside of every string, byte string and character literal replaced by
/// spaces. Line breaks stay, so line numbers do not move.
pub(super) fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut part = Part::Code;
    let mut i = 0;
    while i < chars.len() {
        let c = at(i);
        let mut taken = 1;
        let mut keep = false;
        match part {
            Part::Code => {
                if c == '/' && at(i + 1) == '/' {
                    part = Part::LineComment;
                } else if c == '/' && at(i + 1) == '*' {
                    part = Part::BlockComment(1);
                    taken = 2;
                } else if c == '"' {
                    part = Part::Text;
                    keep = true;
                } else if let Some(hashes) = raw_string_start(&chars, i) {
                    part = Part::RawText(hashes);
                    taken = hashes + 2;
                } else if c == '\'' {
                    taken = char_literal(&chars, i);
                    keep = taken == 1;
                } else {
                    keep = true;
                }
            }
            Part::LineComment => {
                if c == '\n' {
                    part = Part::Code;
                }
            }
            Part::BlockComment(depth) => {
                if c == '*' && at(i + 1) == '/' {
                    taken = 2;
                    part = match depth {
                        1 => Part::Code,
                        _ => Part::BlockComment(depth - 1),
                    };
                } else if c == '/' && at(i + 1) == '*' {
                    taken = 2;
                    part = Part::BlockComment(depth + 1);
                }
            }
            Part::Text => {
                if c == '\\' {
                    taken = 2;
                } else if c == '"' {
                    part = Part::Code;
                    keep = true;
                }
            }
            Part::RawText(hashes) => {
                if c == '"' && (1..=hashes).all(|n| at(i + n) == '#') {
                    taken = 1 + hashes;
                    part = Part::Code;
                }
            }
        }
        for n in 0..taken.min(chars.len() - i) {
            let c = at(i + n);
            out.push(if keep || c == '\n' { c } else { ' ' });
        }
        i += taken;
    }
    out
}

/// Number of `#` of the raw string that starts at `i`, if one does.
fn raw_string_start(chars: &[char], i: usize) -> Option<usize> {
    let word = |c: Option<&char>| c.is_some_and(|c| c.is_alphanumeric() || *c == '_');
    if chars.get(i) != Some(&'r') {
        return None;
    }
    let before = i.checked_sub(1).and_then(|i| chars.get(i));
    let prefix =
        matches!(before, Some('b' | 'c')) && !word(i.checked_sub(2).and_then(|i| chars.get(i)));
    if word(before) && !prefix {
        return None;
    }
    let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(i + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Length of the character literal at `i`, or 1 if the quote belongs to a lifetime.
fn char_literal(chars: &[char], i: usize) -> usize {
    if chars.get(i + 1) == Some(&'\\') {
        let rest = chars.iter().skip(i + 3).position(|c| *c == '\'');
        return rest.map_or(1, |n| n + 4);
    }
    if chars.get(i + 2) == Some(&'\'') {
        3
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::code_only;

    /// Blanks out, checks that nothing moved, and returns the words that are left.
    #[track_caller]
    fn words(text: &str) -> Vec<String> {
        let code = code_only(text);
        assert_eq!(code.chars().count(), text.chars().count());
        assert_eq!(code.lines().count(), text.lines().count());
        code.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn comments_vanish_and_lines_stay() {
        assert_eq!(words("a // b\n/* c /* d */ e\n*/ f\n"), ["a", "f"]);
    }

    #[test]
    fn string_contents_vanish() {
        assert_eq!(words(r#"x( "a\"b//c" ) y"#), ["x(", "\"", "\"", ")", "y"]);
        assert_eq!(words("r#\"u\"v\"# w"), ["w"]);
        assert_eq!(words("br\"u\" w"), ["b", "w"]);
        assert_eq!(words("for\"u\" w"), ["for\"", "\"", "w"]);
    }

    #[test]
    fn a_quote_character_opens_no_string() {
        assert_eq!(words("'\"' a '\\'' b '\\u{22}' c"), ["a", "b", "c"]);
    }

    #[test]
    fn lifetimes_are_not_characters() {
        let text = "fn f<'a>(x: &'a str, y: &'static u8) {}";
        assert_eq!(code_only(text), text);
    }

    #[test]
    fn unterminated_literals_end_with_the_file() {
        for text in ["\"abc", "r#\"abc", "/* abc", "'", "'\\", "r#", "\"\\"] {
            words(text);
        }
    }
}
