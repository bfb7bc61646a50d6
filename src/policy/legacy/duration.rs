//! `h[h][:mm][:ss]`: how the old program writes a length of time. Hours come first: "10" is ten hours, "1:30" an hour and a half.

/// In seconds; `None` where it is none.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let mut parts = text.split(':');
    let mut total = 0;
    for (unit, most) in [(3600, 99), (60, 59), (1, 59)] {
        let Some(part) = parts.next() else { break };
        let fits = (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let number = part.parse::<u64>().ok().filter(|number| fits && *number <= most)?;
        total += number * unit;
    }
    parts.next().is_none().then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_come_first() {
        for (text, expected) in [("10", 36_000), ("1:30", 5_400), ("00:00:01", 1), ("23:59:59", 86_399), ("0", 0)] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for wrong in ["", ":", "1:", "100", "1:60", "1:2:3:4", "-1", "1h", "+1", " 1", "1:00:99"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
