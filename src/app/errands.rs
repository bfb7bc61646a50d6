//! Joins what the role schedule, HTTP and the console ask for with the workers of detect, which do it.
//!
//! Owns the ids by which the effects of such a run are told when it happens again. Never decides when.

use std::sync::Arc;

use serde_json::Map;

use crate::console;
use crate::detect::{ErrandError, Errands};
use crate::http::endpoints::{self, Unanswered};
use crate::policy::{Answered, Errand};
use crate::report::{ReportId, Time};
use crate::schedule::runner;

/// Runs background functions. The id goes by function and time: an alert of a run that is repeated after a crash is the same alert.
pub(super) fn background(errands: Errands) -> runner::Run {
    Arc::new(move |name, due| {
        let errands = errands.clone();
        Box::pin(async move {
            let id = ReportId::of(format!("background {} {name}", due.micros()).as_bytes());
            let ran = errands.run(Errand::Background(name), id, due).await;
            ran.map(drop).map_err(|error| error.to_string())
        })
    })
}

/// Answers custom endpoints. Each request is one of its own.
pub(super) fn endpoints(errands: Errands) -> endpoints::Run {
    Arc::new(move |name, attributes| {
        let errands = errands.clone();
        Box::pin(async move {
            let errand = Errand::Endpoint { name, attrs: attributes.single, attrs_mv: attributes.several };
            let id = ReportId::of(&rand::random::<[u8; 16]>());
            match errands.answer(errand, id, Time::now()).await {
                Ok(Answered::Endpoint { success, attrs }) => Ok((success, attrs)),
                Ok(Answered::Nothing | Answered::Line(_)) => Ok((true, Map::new())),
                Err(ErrandError::Unknown) => Err(Unanswered::Unknown),
                Err(error @ (ErrandError::Busy(_) | ErrandError::NoRoom)) => Err(Unanswered::Busy(error.to_string())),
                Err(error) => Err(Unanswered::Failed(error.to_string())),
            }
        })
    })
}

/// Runs lines of the console, each in every worker.
pub(super) fn lines(errands: Errands) -> console::Run {
    Arc::new(move |lua| {
        let errands = errands.clone();
        Box::pin(async move {
            let id = ReportId::of(&rand::random::<[u8; 16]>());
            let all = errands.run_everywhere(Errand::Line(lua), id, Time::now()).await;
            let mut said = all.into_iter().map(|outcome| match outcome {
                Ok(Answered::Line(text)) => (text, false),
                Ok(_) => (String::new(), false),
                Err(error) => (error.to_string(), true),
            });
            let (text, failed) = said.next().unwrap_or_default();
            let others = said.enumerate().filter(|(_, (other, _))| *other != text);
            let others = others.map(|(at, (other, _))| (at + 2, other)).collect();
            let incomplete = failed && text.ends_with("near '<eof>'");
            console::Answer { text, failed, incomplete, others }
        })
    })
}
