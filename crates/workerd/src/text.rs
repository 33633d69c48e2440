//! Literals of Cap'n Proto's text format.
//!
//! Owns: escaping. Must not: know what the literal is for.

use std::fmt::Write;

/// A `Text` literal with its quotes. Everything but printable ASCII is written as `\xNN` per byte of UTF-8, so no content can end the
/// literal or be changed by the reader.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out.push('"');
    out
}

/// A list of `Text` literals.
pub fn quote_list<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let items: Vec<String> = items.into_iter().map(|s| quote(s.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_could_end_or_change_a_literal() {
        assert_eq!(
            quote("a\"b\\c\n\0é~"),
            "\"a\\\"b\\\\c\\x0a\\x00\\xc3\\xa9~\""
        );
        assert_eq!(quote_list(["x", "y z"]), "[\"x\", \"y z\"]");
        assert_eq!(quote_list(Vec::<String>::new()), "[]");
    }
}
