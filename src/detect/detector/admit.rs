//! The beginning: a delivery is decoded, enriched and given its place behind its login's earlier reports, or that of its first copy where
//! that is still in hand, or rejected at once.
//!
//! A part of [`Detector`]. It runs nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Detector;
use crate::decode::{self, Malformed};
use crate::detect::dispatch::Place;
use crate::detect::enrich;
use crate::detect::slot::Slot;
use crate::detect::worker::panic_text;
use crate::queue::{AckToken, Delivery, Message, Reason, ReasonKind, headers};
use crate::report::{LoginReport, Time};

/// Bytes of the names of the policies that a report is limited to. What is longer is not ours, and each name may stand in the reason of a
/// dead letter.
const MAX_ONLY: usize = 16 * 1024;

impl Detector {
    pub(super) fn on_delivery(&mut self, delivery: Delivery) {
        let metrics = Arc::clone(&self.parts.services.metrics);
        metrics.unsettled.inc();
        let Delivery { message, coordinates, token, .. } = delivery;
        let read = catch_unwind(AssertUnwindSafe(|| self.read(&message, &coordinates)));
        let reason = match read {
            Ok(Ok(report)) => return self.admit(token, report, &message),
            Ok(Err(malformed)) => (ReasonKind::Malformed, format!("not a report: {malformed}")),
            Err(panic) => (ReasonKind::Internal, format!("a fault of this program: {}", panic_text(&*panic))),
        };
        metrics.unsettled.dec();
        metrics.handled.inc();
        let (kind, text) = reason;
        token.reject(Reason { kind, text, only: Vec::new(), attempts: 1 });
    }

    fn read(&self, message: &Message, coordinates: &str) -> Result<LoginReport, Malformed> {
        let only = message.header(headers::ONLY).map_or(0, str::len);
        if only > MAX_ONLY {
            let (field, reason) = (headers::ONLY.to_owned(), format!("{only} bytes in the header; at most {MAX_ONLY}"));
            return Err(Malformed { field, reason });
        }
        let decoded = decode::decode(&message.body, &self.parts.limits)?;
        let (received, skew) = (Time::now(), self.parts.max_skew);
        let given = (!message.untimed).then_some(message.published);
        let queued = decoded.from_queue(given, &message.body, coordinates, received, skew);
        let metrics = &self.parts.services.metrics;
        metrics.skewed.inc_by(u64::from(queued.skewed));
        metrics.untimed.inc_by(u64::from(queued.untimed));
        let mut report = queued.report;
        enrich(&mut report, &self.parts.services);
        Ok(report)
    }

    fn admit(&mut self, token: AckToken, report: LoginReport, message: &Message) {
        let only: Option<Vec<String>> =
            message.header(headers::ONLY).map(|names| names.split(',').map(str::to_owned).collect());
        let tag = token.tag();
        if self.outdated.begins(tag) {
            let of_lane = self.slots.iter().filter(|(_, slot)| slot.token.tag().lane == tag.lane);
            self.outdated.extend(of_lane.map(|(number, slot)| (slot.report.id, *number)));
        }
        let same = |number: &u64| self.slots.get(number).is_some_and(|slot| slot.only == only);
        let first_copy = self.outdated.of(report.id).find(same);
        if let Some((number, slot)) = first_copy.and_then(|number| Some((number, self.slots.get_mut(&number)?))) {
            self.outdated.forget(report.id, number);
            slot.token = token;
            return self.parts.services.metrics.unsettled.dec();
        }
        let number = self.next_number;
        self.next_number += 1;
        let place = self.dispatch.admit(number, &report.login);
        if place == Place::SideBySide {
            self.say_unordered();
        }
        let mut slot = Slot::new(token, report, place, only);
        if !self.hung.is_empty() {
            self.give_up_hung(&mut slot);
        }
        self.slots.insert(number, Box::new(slot));
    }

    fn say_unordered(&mut self) {
        self.parts.services.metrics.unordered.inc();
        self.unordered.1 += 1;
        if self.unordered.0.elapsed() >= Duration::from_secs(60) {
            tracing::warn!(
                reports = self.unordered.1,
                "reports of logins with more than detect.login_backlog waiting ran out of order"
            );
            self.unordered = (Instant::now(), 0);
        }
    }
}
