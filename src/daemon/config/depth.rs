//! How deep a configuration's text is nested, before it is read.
//!
//! Decides that some depth is enough. The library has a bound of its own, but counts brackets that close nothing as if they did
//! (`RecursionGuard` in `toml_parser` 1.1.5): a text with many of them takes all of the stack, and the daemon with it.

use toml_parser::Source;
use toml_parser::lexer::TokenKind;

/// No value of ours is more than four deep.
const DEEPEST: usize = 16;

/// Whether brackets and braces are open in more than [`DEEPEST`] others. One that closes another kind closes nothing.
pub(super) fn is_too_deep(text: &str) -> bool {
    let mut open = Vec::new();
    for token in Source::new(text).lex() {
        match token.kind() {
            kind @ (TokenKind::LeftCurlyBracket | TokenKind::LeftSquareBracket) => open.push(kind),
            TokenKind::RightCurlyBracket => {
                open.pop_if(|innermost| *innermost == TokenKind::LeftCurlyBracket);
            }
            TokenKind::RightSquareBracket => {
                open.pop_if(|innermost| *innermost == TokenKind::LeftSquareBracket);
            }
            _ => {}
        }
        if open.len() > DEEPEST {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths() {
        for (text, is_deep) in [
            ("a = 1".to_owned(), false),
            (format!("a = {}1{}", "[".repeat(DEEPEST), "]".repeat(DEEPEST)), false),
            (format!("a = {}", "[".repeat(DEEPEST + 1)), true),
            (format!("a = {}", "{a = ".repeat(DEEPEST + 1)), true),
            // What stands in strings and comments opens nothing.
            (format!("a = '{0}' # {0}", "[".repeat(100)), false),
            ("[a]\n[[b]]\n".repeat(1000), false),
            // What the library's own bound takes for closed.
            (format!("a={{{},b={}", "{}".repeat(50_000), "{c=".repeat(50_000)), true),
            (format!("a={}", "{a=[}{]".repeat(1000)), true),
        ] {
            assert_eq!(is_too_deep(&text), is_deep, "{}", text.chars().take(100).collect::<String>());
        }
    }
}
