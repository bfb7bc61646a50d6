//! A report that is taken stays the same report on its way through the queue: what `receive` writes, `detect` reads back under the
//! same limits, with every field, its time and its id. Otherwise a report that was answered 2xx would become a dead letter, or be
//! taken for another one when it is handed out again. What is refused is refused in few words: they go into answers and logs.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use trackalert::config::Config;
use trackalert::decode::decode;
use trackalert::report::Time;

static DEFAULTS: LazyLock<Config> = LazyLock::new(|| Config::load_with(None, [], &[]).expect("the defaults are right"));
const RECEIVED: Time = Time::from_micros(1_772_323_200_000_000);

fuzz_target!(|bytes: &[u8]| {
    let (limits, max_skew) = (DEFAULTS.receive.limits(), DEFAULTS.receive.max_skew);
    let decoded = match decode(bytes, &limits) {
        Ok(decoded) => decoded,
        Err(malformed) => return assert!(malformed.to_string().len() < 1000, "{malformed}"),
    };
    let stamped = decoded.stamp(RECEIVED, max_skew);
    // `receive` refuses what is too long now that every field is written out.
    if stamped.body.len() > limits.max_report {
        return;
    }
    let again = decode(&stamped.body, &limits).expect("what was stamped is a report");
    assert_eq!(again.dropped, 0, "what is written is kept");
    // Read a day later: a time that is not the stamped one shows.
    let later = RECEIVED.plus(Duration::from_secs(86_400));
    let mut read = again.from_queue(Some(later), &stamped.body, "reports/0/1", later, max_skew).report;
    assert_eq!(read, stamped.report);
    // The id is the content's: who has lost it finds the same one.
    assert_eq!(read.stamp(), stamped.body);
});
