//! Arguments of API functions: taken out of Lua, or refused with the function, the argument and what is allowed.

use std::time::Duration;

use mlua::{Function, MultiValue, Table, Value};

use crate::policy::call::Answer;

/// Ten years: longer than any window or expiry that means something, and far from overflow.
const LONGEST: f64 = 10.0 * 366.0 * 86_400.0;

/// The arguments of one call, in order.
pub(in crate::policy) struct Args {
    function: &'static str,
    values: MultiValue,
}

impl Args {
    pub(in crate::policy) fn new(function: &'static str, values: MultiValue) -> Self {
        Self { function, values }
    }

    /// The next argument; nil where there is none.
    pub(in crate::policy) fn value(&mut self) -> Value {
        self.values.pop_front().unwrap_or(Value::Nil)
    }

    /// A string, or a number as Lua writes it.
    pub(in crate::policy) fn string(&mut self, name: &str) -> Answer<String> {
        let value = self.value();
        string(&value).ok_or_else(|| self.wrong(name, "a string", &value))
    }

    /// A table.
    pub(in crate::policy) fn table(&mut self, name: &str) -> Answer<Table> {
        match self.value() {
            Value::Table(table) => Ok(table),
            other => Err(self.wrong(name, "a table", &other)),
        }
    }

    /// A table, or nothing.
    pub(in crate::policy) fn optional_table(&mut self, name: &str) -> Answer<Option<Table>> {
        match self.value() {
            Value::Nil => Ok(None),
            Value::Table(table) => Ok(Some(table)),
            other => Err(self.wrong(name, "a table", &other)),
        }
    }

    /// A boolean.
    pub(in crate::policy) fn boolean(&mut self, name: &str) -> Answer<bool> {
        match self.value() {
            Value::Boolean(flag) => Ok(flag),
            other => Err(self.wrong(name, "a boolean", &other)),
        }
    }

    /// A whole number above zero.
    pub(in crate::policy) fn whole(&mut self, name: &str) -> Answer<i64> {
        let value = self.value();
        match number(&value) {
            Some(number) if number.fract() == 0.0 && (1.0..=f64::from(i32::MAX)).contains(&number) => Ok(number as i64),
            Some(_) => Err(self.error(name, "must be a whole number from 1 to 2147483647")),
            None => Err(self.wrong(name, "a whole number", &value)),
        }
    }

    /// A function.
    pub(in crate::policy) fn function(&mut self, name: &str) -> Answer<Function> {
        match self.value() {
            Value::Function(function) => Ok(function),
            other => Err(self.wrong(name, "a function", &other)),
        }
    }

    /// A list of strings.
    pub(in crate::policy) fn texts(&mut self, name: &str) -> Answer<Vec<String>> {
        let table = self.table(name)?;
        let entries = table.sequence_values::<Value>().enumerate();
        entries
            .map(|(at, entry)| {
                let entry = entry.map_err(|error| self.error(name, error))?;
                string(&entry).ok_or_else(|| self.wrong(&format!("{name}[{}]", at + 1), "a string", &entry))
            })
            .collect()
    }

    /// `function: name: what is required, got …`.
    pub(in crate::policy) fn wrong(&self, name: &str, required: &str, got: &Value) -> String {
        format!("{}: {name}: {required} is required, got {}", self.function, describe(got))
    }

    /// `function: name: reason`.
    pub(in crate::policy) fn error(&self, name: &str, reason: impl std::fmt::Display) -> String {
        format!("{}: {name}: {reason}", self.function)
    }

    /// `function: name.path: reason`, where the reason begins with the path in the value.
    pub(super) fn at(&self, name: &str, reason: &str) -> String {
        format!("{}: {name}{reason}", self.function)
    }

    /// The options in a table whose keys must all be among `known`.
    pub(in crate::policy) fn fields<const N: usize>(&self, table: &Table, known: [&str; N]) -> Answer<[Value; N]> {
        let mut found: [Value; N] = std::array::from_fn(|_| Value::Nil);
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair.map_err(|error| self.error("table", error))?;
            let name = string(&key).unwrap_or_else(|| describe(&key));
            match known.iter().position(|known| *known == name) {
                Some(at) => found[at] = value,
                None => return Err(self.unknown(&name, &known)),
            }
        }
        Ok(found)
    }

    fn unknown(&self, name: &str, known: &[&str]) -> String {
        let shown = cut(name, 64);
        match nearest(name, known) {
            Some(near) => format!("{}: {shown}: no such key; did you mean {near}?", self.function),
            None => format!("{}: {shown}: no such key; there are {}", self.function, known.join(", ")),
        }
    }

    /// A number of seconds above zero.
    pub(in crate::policy) fn seconds(&self, name: &str, value: &Value) -> Answer<Duration> {
        match number(value) {
            Some(seconds) if seconds > 0.0 && seconds <= LONGEST => Ok(Duration::from_secs_f64(seconds)),
            Some(_) => Err(self.error(name, "must be a number of seconds above 0 and below ten years")),
            None => Err(self.wrong(name, "a number of seconds", value)),
        }
    }
}

/// The known name that is most like this one, where one is like it.
pub(in crate::policy) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (strsim::jaro_winkler(name, known), *known));
    near.filter(|(likeness, _)| *likeness > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// A string or a number as text. Bytes that are no UTF-8 are replaced: half a character at the end of a cut name must not make a
/// policy fail, or an attacker could choose a login that no policy sees.
pub(in crate::policy) fn string(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(String::from_utf8_lossy(&text.as_bytes()).into_owned()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A number.
pub(in crate::policy) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Number(number) => Some(*number),
        _ => None,
    }
}

/// What a value is, for an error.
pub(in crate::policy) fn describe(value: &Value) -> String {
    match value {
        Value::Nil => "nothing".to_owned(),
        Value::Boolean(value) => format!("the boolean {value}"),
        Value::Integer(_) | Value::Number(_) => {
            format!("the number {}", string(value).unwrap_or_default())
        }
        other => format!("a {}", other.type_name()),
    }
}

/// The text, cut at a character with a sign that says so.
pub(in crate::policy) fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes.saturating_sub('…'.len_utf8()))])
}
