//! The reader of search bodies takes any JSON without a panic, and never more than its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trackalert::history::query::parse;
use trackalert::report::Time;

fuzz_target!(|bytes: &[u8]| {
    let Ok(body) = serde_json::from_slice(bytes) else { return };
    if let Ok(query) = parse(&body, Time::from_micros(1_772_323_200_000_000)) {
        let _ = query.span();
        let _ = query.check(10_000, 65_536);
    }
});
