//! An alert as one line for people.
//!
//! Pure. Logins, addresses and titles come from whoever tries to log in: what could forge a second log line or move a terminal's
//! cursor is escaped here, once.

use crate::alert::Alert;

/// The longest line, in characters: a policy that puts a page into its title must not push the other alerts off the screen.
const LONGEST: usize = 500;

/// `[high] alice logged in from … (success_after_failures, login alice, from 192.0.2.7)`.
pub fn line(alert: &Alert) -> String {
    let mut text = format!("[{}] {} ({}", alert.severity.name(), alert.title, alert.kind);
    if let Some(login) = &alert.login {
        text.push_str(", login ");
        text.push_str(login);
    }
    if let Some(remote) = &alert.remote {
        text.push_str(", from ");
        text.push_str(remote);
    }
    text.push(')');
    printable(&text, LONGEST)
}

/// The text on one line: control characters and what turns the direction of writing are escaped, and the rest beyond `longest`
/// characters is cut off.
pub(super) fn printable(text: &str, longest: usize) -> String {
    let mut line = String::with_capacity(text.len().min(longest * 4));
    for (count, symbol) in text.chars().enumerate() {
        if count == longest {
            line.push('…');
            break;
        }
        let turns = matches!(symbol, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
        if symbol.is_control() || turns {
            line.extend(symbol.escape_default());
        } else {
            line.push(symbol);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn login_that_forges_a_log_line_is_escaped() {
        let forged = printable("alice\n[critical] all is lost\u{1b}[2J\u{202e}", LONGEST);
        assert_eq!(forged, "alice\\n[critical] all is lost\\u{1b}[2J\\u{202e}");
    }

    proptest! {
        #[test]
        fn line_has_no_control_character_and_a_bound(text in "\\PC*|[\\x00-\\x1f]{0,40}|.{0,900}") {
            let line = printable(&text, 100);
            prop_assert!(!line.chars().any(char::is_control));
            prop_assert!(line.chars().count() <= 101 * 10);
        }
    }
}
