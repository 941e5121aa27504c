//! Text as it is shown: on one line, as a word of a shell, with its number.

use std::fmt::Write;

/// The text on one line, safe to print: control characters (a guest's name may hold a newline or a terminal's escape
/// sequence) are escaped, and so are those that change the order in which the rest of the line is shown.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || is_direction(character) {
            let _ = write!(line, "{}", character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Source: Unicode, "Bidirectional Algorithm", "Directional Formatting Characters".
fn is_direction(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A word of a command that an admin is to run, as a shell takes it. Commands are shown on one line in backquotes, so a
/// word has neither a newline nor a backquote in it.
pub fn shell_word(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:,@%=".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    if !word.contains(|character: char| character == '`' || character.is_control()) {
        return format!("'{}'", word.replace('\'', r"'\''"));
    }
    let mut quoted = String::from("$'");
    for character in word.chars() {
        match character {
            '\'' | '\\' => quoted.extend(['\\', character]),
            '`' => quoted.push_str("\\140"),
            control if control.is_control() => {
                control.to_string().bytes().for_each(|byte| _ = write!(quoted, "\\{byte:03o}"));
            }
            character => quoted.push(character),
        }
    }
    quoted + "'"
}

/// A number of things: `1 VF`, `7 VFs`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_on_one_line() {
        assert_eq!(one_line("guest 'a\nb'"), "guest 'a\\nb'");
        assert_eq!(one_line("\u{1b}[2J\u{202e}x"), "\\u{1b}[2J\\u{202e}x");
    }

    #[test]
    fn words_of_commands_are_quoted() {
        for (word, quote) in [
            ("web-01", "web-01"),
            ("my guest", "'my guest'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("$(x)", "'$(x)'"),
            ("x``reboot``", r"$'x\140\140reboot\140\140'"),
            ("it's\n\\`", r"$'it\'s\012\\\140'"),
        ] {
            assert_eq!(shell_word(word), quote);
        }
    }
}
