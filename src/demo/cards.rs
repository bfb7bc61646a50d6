//! What the demo shows: an alert as a card with its evidence, and what was planted against what was found as a table.
//!
//! Owns the words and their look. Pure: text in, text out; colours only where asked for.

use std::fmt::Write;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use owo_colors::{OwoColorize, Style};
use serde_json::Value;

use super::stories::{Ledger, Story, Verdict};
use crate::alert::{Alert, Severity};
use crate::report::Time;

/// The widest value of a card, in characters.
const WIDEST: usize = 96;
/// False alarms that are listed.
const LISTED: usize = 10;
/// The table where no terminal says its width.
const WIDTH: u16 = 118;

fn painted(text: &str, style: Style, colour: bool) -> String {
    if colour { text.style(style).to_string() } else { text.to_owned() }
}

const fn style_of(severity: Severity) -> Style {
    match severity {
        Severity::Info => Style::new().blue().bold(),
        Severity::Low => Style::new().cyan().bold(),
        Severity::Medium => Style::new().yellow().bold(),
        Severity::High => Style::new().red().bold(),
        Severity::Critical => Style::new().on_red().white().bold(),
    }
}

/// A name in a report may hold anything: nothing of it may move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `2026-11-15 04:58 UTC` of an RFC 3339 time.
pub(super) fn moment(time: &str) -> String {
    match (time.get(..10), time.get(11..16)) {
        (Some(date), Some(clock)) => plain(&format!("{date} {clock} UTC")),
        _ => plain(time),
    }
}

/// The same without the zone, for the table.
fn short(time: &str) -> String {
    moment(time).trim_end_matches(" UTC").to_owned()
}

fn words(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(plain(text)),
        Value::Bool(flag) => Some(if *flag { "yes" } else { "no" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(items) => Some(items.iter().filter_map(words).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs = map.iter().filter_map(|(key, value)| Some(format!("{} {}", plain(key), words(value)?)));
            Some(pairs.collect::<Vec<_>>().join(", "))
        }
    }
    .filter(|text| !text.is_empty())
}

fn cut(text: &str) -> String {
    if text.chars().count() <= WIDEST {
        return text.to_owned();
    }
    text.chars().take(WIDEST - 1).chain(['…']).collect()
}

/// The alert as some lines. `verdict` says what it turned out to be, where that is known.
pub(super) fn card(alert: &Alert, verdict: Option<(Verdict, &Ledger)>, colour: bool) -> String {
    let paint = |text: &str, style| painted(text, style, colour);
    let (dim, style) = (Style::new().dimmed(), style_of(alert.severity));
    let bar = paint("│", style);
    let mut card = format!(
        "{} {}  {}  {}\n",
        paint("┌", style),
        paint(&alert.severity.name().to_uppercase(), style),
        paint(&plain(&alert.kind), Style::new().bold()),
        paint(&moment(&alert.time), dim),
    );
    // Writing to a string has no way to fail.
    let _ = writeln!(card, "{bar} {}", paint(&plain(&alert.title), Style::new().bold()));
    if !alert.text.is_empty() {
        let _ = writeln!(card, "{bar} {}", plain(&alert.text));
    }
    let technique = alert.attack.as_ref().and_then(words).map(|text| ("attack".to_owned(), text));
    let evidence = alert.evidence.as_object().into_iter().flatten();
    let evidence = evidence.filter_map(|(key, value)| Some((plain(key).replace('_', " "), words(value)?)));
    let lines: Vec<_> = evidence.chain(technique).collect();
    let wide = lines.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    for (key, value) in &lines {
        let _ = writeln!(card, "{bar}   {}  {}", paint(&format!("{key:<wide$}"), dim), cut(value));
    }
    let end = match verdict {
        None => format!("raised by policy {}", plain(&alert.policy)),
        Some((Verdict::Story(index), ledger)) => format!("planted: {}", ledger.stories()[index].0.title),
        Some((Verdict::FalseAlarm, _)) => paint("FALSE ALARM: nothing was planted here", Style::new().red().bold()),
        Some((Verdict::Again, _)) => "came before: the same id".to_owned(),
    };
    let _ = writeln!(card, "{} {end}", paint("└", style));
    card
}

/// The table of stories, and the list of false alarms. Without a terminal it has a fixed width.
pub(super) fn table(ledger: &Ledger, terminal: bool, colour: bool) -> String {
    let (good, bad) = (Style::new().green().bold(), Style::new().red().bold());
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if !terminal {
        table.force_no_tty().set_width(WIDTH);
    }
    table.set_header(["planted", "begins (UTC)", "found (UTC)", "alert"]);
    let (wide, time) =
        (ColumnConstraint::LowerBoundary(Width::Percentage(32)), ColumnConstraint::Absolute(Width::Fixed(18)));
    table.set_constraints([wide, time, time, wide]);
    for (story, finds) in ledger.stories() {
        let begins = short(&story.from.rfc3339());
        if story.is_attack() {
            for (n, (expected, find)) in story.expected.iter().zip(finds).enumerate() {
                let (title, begins) = if n == 0 { (story.title.as_str(), begins.as_str()) } else { ("  and", "") };
                match find {
                    Some((time, alert)) => table.add_row([title, begins, &short(time), &plain(alert)]),
                    None => table.add_row([title, begins, "MISSED", &format!("no {}", expected.kind)]),
                };
            }
        } else {
            let raised = ledger.raised_by(story).count();
            let quiet = if raised == 0 { "quiet".to_owned() } else { format!("{raised} FALSE") };
            table.add_row([&format!("(no attack) {}", story.title), &begins, &quiet, ""]);
        }
    }
    let mut text = format!("{table}\n");
    let (attacks, tempting): (Vec<_>, Vec<_>) = ledger.stories().iter().partition(|(story, _)| story.is_attack());
    let found = attacks.iter().filter(|(_, finds)| finds.iter().all(Option::is_some)).count();
    let quiet = |(story, _): &&&(Story, Vec<_>)| ledger.raised_by(story).count() == 0;
    let false_alarms = ledger.false_alarms();
    let _ = writeln!(
        text,
        "{} in {} alerts; {} of {} temptations stayed quiet; {}",
        painted(
            &format!("{found} of {} attacks found", attacks.len()),
            if ledger.all_found() { good } else { bad },
            colour
        ),
        ledger.alerts(),
        tempting.iter().filter(quiet).count(),
        tempting.len(),
        painted(
            &format!("{} false alarms", false_alarms.len()),
            if false_alarms.is_empty() { good } else { bad },
            colour
        ),
    );
    for alert in false_alarms.iter().take(LISTED) {
        let _ = writeln!(text, "  {}  {}  {}", moment(&alert.time), plain(&alert.kind), plain(&alert.title));
    }
    if false_alarms.len() > LISTED {
        let _ = writeln!(text, "  and {} more", false_alarms.len() - LISTED);
    }
    text
}

/// The date of a report, for the progress.
pub(super) fn date(micros: i64) -> String {
    Time::from_micros(micros).rfc3339().get(..10).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::demo::tests::alert;
    use crate::demo::traffic::{FEWEST, TrafficOptions, traffic};

    #[test]
    fn card_without_colour_is_plain_text_with_the_evidence_in_columns() {
        let mut raised = alert(
            "new_country",
            "ann@alpennet.example",
            "198.19.64.1",
            "ann",
            Time::from_micros(1_763_500_000_000_000),
        );
        raised.title = "ann logged in from BR\u{1b}[2J for the first time".into();
        raised.text = "Ask her.".into();
        raised.attack = Some(json!("T1078"));
        raised.evidence = json!({
            "country": "BR", "known_countries": ["AT", "IT"], "none": null, "empty": {}, "logins": 12,
            "shared": false, "fail_types": { "credentials": 3 }, "long": "x".repeat(500),
        });
        let text = card(&raised, None, false);
        let long = format!("{}…", "x".repeat(WIDEST - 1));
        assert_eq!(
            text,
            format!(
                "┌ MEDIUM  new_country  2025-11-18 21:06 UTC\n\
                 │ ann logged in from BR [2J for the first time\n\
                 │ Ask her.\n\
                 │   country          BR\n\
                 │   fail types       credentials 3\n\
                 │   known countries  AT, IT\n\
                 │   logins           12\n\
                 │   long             {long}\n\
                 │   shared           no\n\
                 │   attack           T1078\n\
                 └ raised by policy new_country\n"
            )
        );
        assert!(card(&raised, None, true).contains("\u{1b}["));
    }

    #[test]
    fn table_names_what_was_missed_and_lists_the_first_false_alarms() {
        let options = TrafficOptions { reports: FEWEST, until: Time::from_micros(1_763_500_000_000_000) };
        let stream = traffic(1, &options);
        let mut ledger = Ledger::new(stream.stories());
        let story = stream.stories()[0].clone();
        let crate::demo::stories::Subject::Login(login) = &story.expected[0].subject else { panic!("no login") };
        ledger.take(&alert("new_country", login, "198.19.64.1", login, story.until));
        for n in 0..12 {
            let (name, at) = (format!("nobody{n}"), story.until);
            ledger.take(&alert("new_network", &name, "198.19.64.1", &name, at));
        }
        let text = table(&ledger, false, false);
        assert!(!text.contains('\u{1b}'));
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(WIDTH)), "{text}");
        assert!(text.contains("1 of 11 attacks found in 13 alerts; 5 of 5 temptations stayed quiet; 12 false alarms"));
        assert!(
            text.contains("no dormant_account") && text.contains("MISSED") && text.contains("and 2 more"),
            "{text}"
        );
    }
}
