//! The verdicts in JUnit's XML, which build servers read.
//!
//! A suite a policy, a test case a case; a difference is a failure, a broken file an error. Characters that XML has no way to write are
//! replaced: one in a login must not make the whole report unreadable.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::text::Look;
use super::{Case, Problem, Round, Verdict};

type Xml = Writer<Vec<u8>>;

/// The whole report.
pub(super) fn write(round: &Round) -> io::Result<Vec<u8>> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let all = round.verdicts.len() + round.problems.len();
    let totals = [
        ("name", "trackalert test".to_owned()),
        ("tests", all.to_string()),
        ("failures", round.failed().to_string()),
        ("errors", round.problems.len().to_string()),
        ("time", seconds(round.took)),
    ];
    let head = totals
        .iter()
        .fold(xml.create_element("testsuites"), |head, (name, value)| head.with_attribute((*name, value.as_str())));
    head.write_inner_content(|xml| {
        for policy in policies(round) {
            suite(xml, round, policy)?;
        }
        Ok(())
    })?;
    Ok(xml.into_inner())
}

/// In the order in which they come.
fn policies(round: &Round) -> Vec<&str> {
    let broken = round.problems.iter().map(|problem| problem.policy.as_str());
    let mut names: Vec<&str> = Vec::new();
    for name in broken.chain(round.cases.iter().map(|case| case.policy.as_str())) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn suite(xml: &mut Xml, round: &Round, policy: &str) -> io::Result<()> {
    let problems: Vec<&Problem> = round.problems.iter().filter(|problem| problem.policy == policy).collect();
    let verdicts = round.verdicts.iter().map(|verdict| (&*round.cases[verdict.number], verdict));
    let verdicts: Vec<(&Case, &Verdict)> = verdicts.filter(|(case, _)| case.policy == policy).collect();
    let took = verdicts.iter().map(|(_, verdict)| verdict.took).sum();
    let failed = verdicts.iter().filter(|(_, verdict)| !verdict.passed()).count();
    xml.create_element("testsuite")
        .with_attribute(("name", valid(policy).as_str()))
        .with_attribute(("tests", (verdicts.len() + problems.len()).to_string().as_str()))
        .with_attribute(("failures", failed.to_string().as_str()))
        .with_attribute(("errors", problems.len().to_string().as_str()))
        .with_attribute(("time", seconds(took).as_str()))
        .write_inner_content(|xml| {
            for problem in problems {
                broken(xml, problem)?;
            }
            for (case, verdict) in verdicts {
                one(xml, case, verdict)?;
            }
            Ok(())
        })?;
    Ok(())
}

fn broken(xml: &mut Xml, problem: &Problem) -> io::Result<()> {
    let file = valid(&problem.file.display().to_string());
    xml.create_element("testcase")
        .with_attribute(("classname", valid(&problem.policy).as_str()))
        .with_attribute(("name", file.as_str()))
        .with_attribute(("file", file.as_str()))
        .write_inner_content(|xml| {
            xml.create_element("error")
                .with_attribute(("message", valid(&problem.text).as_str()))
                .write_text_content(BytesText::new(&valid(&problem.to_string())))?;
            Ok(())
        })?;
    Ok(())
}

fn one(xml: &mut Xml, case: &Case, verdict: &Verdict) -> io::Result<()> {
    let (line, time) = (case.line.to_string(), seconds(verdict.took));
    let element = xml
        .create_element("testcase")
        .with_attribute(("classname", valid(&case.policy).as_str()))
        .with_attribute(("name", valid(&case.name).as_str()))
        .with_attribute(("file", valid(&case.file.display().to_string()).as_str()))
        .with_attribute(("line", line.as_str()))
        .with_attribute(("time", time.as_str()));
    if verdict.passed() && verdict.log.is_empty() {
        element.write_empty()?;
        return Ok(());
    }
    element.write_inner_content(|xml| {
        if let Some(first) = verdict.differences.first() {
            let said = Look { colour: false, log: false }.verdict(case, verdict);
            xml.create_element("failure")
                .with_attribute(("type", first.sort.name()))
                .with_attribute(("message", valid(&first.title).as_str()))
                .write_text_content(BytesText::new(&valid(&said)))?;
        }
        if !verdict.log.is_empty() {
            let log = valid(&verdict.log.join("\n"));
            xml.create_element("system-out").write_text_content(BytesText::new(&log))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn seconds(time: std::time::Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

/// Without the characters that no XML document may hold, not even as a number.
fn valid(text: &str) -> String {
    let fits = |c: char| matches!(c, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..) && c != '\u{7f}';
    text.chars().map(|c| if fits(c) { c } else { '\u{fffd}' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_are_no_xml_are_replaced() {
        assert_eq!(valid("a\u{0}\u{1b}[1m\n<&é\u{ffff}😀"), "a\u{fffd}\u{fffd}[1m\n<&é\u{fffd}😀");
    }
}
