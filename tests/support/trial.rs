//! What trials have in common: a small and a full form, a seed that is printed, a table at the end.

/// The full form is asked for by `tests/trials/NAME`.
pub(crate) fn size<T>(small: T, full: T) -> T {
    if std::env::var_os("TRACKALERT_TRIAL").is_some_and(|form| form == "full") { full } else { small }
}

/// The seed: the one of `TRACKALERT_SEED`, to repeat a run, or a new one.
pub(crate) fn seed() -> u64 {
    std::env::var("TRACKALERT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random)
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Prints what was seen, with the seed that repeats it.
#[allow(clippy::print_stdout, reason = "a trial's table is what it is run for")]
pub(crate) fn print(name: &str, seed: u64, rows: &[(&str, String)]) {
    println!("trial {name}, TRACKALERT_SEED={seed}");
    for (what, value) in rows {
        println!("  {what:<44} {value}");
    }
}
