//! Logs and metrics: the one list of metric names, and how a log line looks.
//!
//! Owns every metric of the program (they exist with value 0 from the start) and the set-up of the log. Never decides what is logged
//! where, and no secret comes near it.

use std::io::IsTerminal;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// Settings of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogSettings {
    /// A level or a filter.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What the databases inside say at `info` is of no use to an operator: files by their paths, at each start. What the AMQP library says
/// may hold a message, and is told by the queue in words of ours.
const QUIET: &str = "fjall=warn,lsm_tree=warn,tantivy=warn,lapin=off";

/// A level by itself, with the databases kept quiet; a filter as it is.
fn filter(level: &str) -> String {
    let level = level.trim();
    match level.to_lowercase().as_str() {
        // Below these nothing is to be kept quiet: `warn` would let through more than was asked for.
        "info" | "debug" | "trace" => format!("{level},{QUIET}"),
        _ => level.to_owned(),
    }
}

/// Starts the log on stderr. A second call in one process (a test) changes nothing. An error names what is wrong with the filter.
pub fn init_log(settings: &LogSettings) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter(&settings.level)).map_err(|error| format!("log.level: {error}"))?;
    let terminal = std::io::stderr().is_terminal();
    // A line that cannot be written (a full disk, a reader that is gone) is left out. Told of on stderr, which is where it could not be
    // written, it would end the thread that had something to say.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let text = match settings.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let _ = if text {
        builder.with_ansi(terminal).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    Ok(())
}

macro_rules! metrics {
    ($( #[doc = $doc:literal] $field:ident : $kind:tt $name:literal $([$($arg:tt)*])? ; )*) => {
        /// Every metric of the program.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $( #[doc = $doc] pub $field: metrics!(@type $kind), )*
        }

        impl Metrics {
            /// All metrics at 0, in a registry of their own.
            pub fn new() -> Self {
                let registry = Registry::new();
                $( let $field = metrics!(@new $kind $name $doc $([$($arg)*])?);
                   // A name stands in the list once, so registration has no way to fail; a doubled one shows in the test.
                   let _ = registry.register(Box::new($field.clone())); )*
                let _ = registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
                Self { registry, $($field),* }
            }
        }
    };
    (@type counter) => { IntCounter };
    (@type counters) => { IntCounterVec };
    (@type gauge) => { IntGauge };
    (@type gauges) => { IntGaugeVec };
    (@type seconds_gauge) => { Gauge };
    (@type histogram) => { Histogram };
    (@new counter $name:literal $help:literal) => { fallback(IntCounter::new($name, $help)) };
    (@new gauge $name:literal $help:literal) => { fallback(IntGauge::new($name, $help)) };
    (@new seconds_gauge $name:literal $help:literal) => { fallback(Gauge::new($name, $help)) };
    (@new counters $name:literal $help:literal [ $label:literal : $($value:literal),* ]) => {{
        let family = fallback(IntCounterVec::new(Opts::new($name, $help), &[$label]));
        $( family.with_label_values(&[$value]); )*
        family
    }};
    (@new gauges $name:literal $help:literal [ $label:literal : $($value:literal),* ]) => {{
        let family = fallback(IntGaugeVec::new(Opts::new($name, $help), &[$label]));
        $( family.with_label_values(&[$value]); )*
        family
    }};
    (@new histogram $name:literal $help:literal) => {
        fallback(Histogram::with_opts(HistogramOpts::new($name, $help).buckets(vec![
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        ])))
    };
}

/// The names are literals of the list below; one that Prometheus does not take is found by the test that renders them all.
#[allow(
    clippy::panic,
    reason = "a name in the list below that is no metric name: found by the first test, never at run time"
)]
fn fallback<T>(made: Result<T, prometheus::Error>) -> T {
    made.unwrap_or_else(|error| panic!("a metric name in telemetry.rs: {error}"))
}

metrics! {
    // The names that clients of the old program know.
    #[doc = "Commands answered over HTTP"]
    commands: counters "trackalert_commands_total" ["cmd": "report", "stats", "custom"];
    #[doc = "Counters of the policies' own"]
    custom_stats: counters "trackalert_custom_stats_total" ["metric": ];
    #[doc = "How long a report waited for its turn and a worker"]
    worker_queue: histogram "trackalert_worker_queue_duration_seconds";
    #[doc = "How long the handlers of a report ran, waiting included"]
    worker_response: histogram "trackalert_worker_response_duration_seconds";
    #[doc = "Open HTTP connections"]
    connections: gauge "trackalert_active_http_connections";

    // schedule
    #[doc = "Background functions that were due: they ran well, failed, or were still running from the time before"]
    background_runs: counters "trackalert_background_runs_total" ["result": "done", "failed", "missed"];

    // receive
    #[doc = "Reports accepted, by the form in which they came"]
    received: counters "trackalert_received_reports_total" ["form": "webhook", "kafka_rest", "report", "batch",
        "rekey"];
    #[doc = "Requests or reports refused, by reason"]
    refused: counters "trackalert_refused_total" ["reason": "malformed", "unauthorized", "signature", "acl", "too_large",
        "time_out", "queue_full", "queue_unavailable", "busy", "not_found", "method", "header"];
    #[doc = "Commands allow from Dovecot, answered and never acted on"]
    allow_ignored: counter "trackalert_allow_ignored_total";
    #[doc = "Reports whose time was too far ahead and was replaced by the time received, or by that of the message"]
    skewed: counter "trackalert_skewed_reports_total";
    #[doc = "Values in attrs and device_attrs that were dropped because of their type"]
    dropped_values: counter "trackalert_dropped_values_total";
    #[doc = "From the end of a request's body to the moment its reports were on disk"]
    publish: histogram "trackalert_publish_duration_seconds";
    #[doc = "Reports answered 2xx from the spool, because the broker did not confirm them in time"]
    spooled: counter "trackalert_spooled_reports_total";

    // queue
    #[doc = "Messages in a queue that are not done"]
    queue_messages: gauges "trackalert_queue_messages" ["queue": "reports", "alerts", "spool", "rekey"];
    #[doc = "Bytes of the messages in a queue that are not done"]
    queue_bytes: gauges "trackalert_queue_bytes" ["queue": "reports", "alerts", "spool", "rekey"];
    #[doc = "Age in seconds of the oldest message that is not done"]
    queue_oldest: gauges "trackalert_queue_oldest_seconds" ["queue": "reports", "alerts", "spool", "rekey"];
    #[doc = "Messages of one partition that are not done, by queue and partition (the first 256)"]
    partition_lag: gauges "trackalert_queue_partition_lag" ["partition": ];
    #[doc = "Dead letters that are kept"]
    dead_letters: gauges "trackalert_dead_letters" ["queue": "reports", "alerts", "spool", "rekey"];
    #[doc = "Messages that became dead letters, by reason"]
    rejected: counters "trackalert_rejected_total" ["reason": "malformed", "policy", "hung", "channel", "internal"];
    #[doc = "Settlements of a generation that is gone, ignored"]
    stale_settlements: counter "trackalert_stale_settlements_total";
    #[doc = "Time of one group commit"]
    group_commit: histogram "trackalert_group_commit_duration_seconds";

    // detect
    #[doc = "Reports handled: acknowledged or rejected"]
    handled: counter "trackalert_handled_reports_total";
    #[doc = "Reports of other programs without a time that can be: none given, or each too far ahead. Their id is made of their place in the queue, and on RabbitMQ another one when they come again"]
    untimed: counter "trackalert_untimed_reports_total";
    #[doc = "Reports that were handled before and came again"]
    repeated: counter "trackalert_repeated_reports_total";
    #[doc = "Handlers running"]
    in_flight: gauge "trackalert_in_flight";
    #[doc = "Reports taken and not yet acknowledged"]
    unsettled: gauge "trackalert_unsettled";
    #[doc = "Reports that gave up their order because their login had too many waiting"]
    unordered: counter "trackalert_unordered_reports_total";
    #[doc = "Messages taken again after a failure, by what failed"]
    retries: counters "trackalert_retries_total" ["what": "policy", "neighbour", "dependency", "channel"];
    #[doc = "Seconds from a report's own time to the moment it was handled, the last one"]
    lag: seconds_gauge "trackalert_lag_seconds";
    #[doc = "Time in the history and acknowledgement after the handlers"]
    settle: histogram "trackalert_settle_duration_seconds";
    #[doc = "1 while work waits for a dependency; channels stand here by their names"]
    waiting: gauges "trackalert_waiting_for" ["dependency": "history", "state", "alerts", "policy", "vm",
        "state (notify)", "reports", "rekey"];

    // files that are taken again when they change
    #[doc = "Files read again (GeoIP, regexes of User-Agents), by outcome"]
    file_reloads: counters "trackalert_file_reloads_total" ["outcome": "taken", "refused"];

    #[doc = "Reports without device_attrs whose device_id was read, by how: `too_long`, only its beginning; `no_regexes`, not at all"]
    devices: counters "trackalert_devices_total" ["how": "parsed", "cached", "unknown", "too_long", "no_regexes"];

    // policy
    #[doc = "Calls of a policy's report that failed, by what stopped them"]
    policy_failures: counters "trackalert_policy_failures_total" ["why": "error", "time", "cpu", "memory", "cancelled",
        "internal"];
    #[doc = "Calls of custom endpoints and background functions that failed, by what stopped them"]
    errand_failures: counters "trackalert_errand_failures_total" ["why": "error", "time", "cpu", "memory", "cancelled",
        "internal", "dependency", "gone", "no_room"];
    #[doc = "HTTP requests of policies, by the class of the answer's status, or by why there is none"]
    policy_http: counters "trackalert_policy_http_total" ["result": "2xx", "3xx", "4xx", "5xx", "failed", "time_out",
        "too_large", "no_turn"];
    #[doc = "Time of one HTTP request of a policy, answered or not"]
    policy_http_duration: histogram "trackalert_policy_http_duration_seconds";
    #[doc = "Files of networks of policies that had changed, by outcome"]
    policy_files: counters "trackalert_policy_files_total" ["outcome": "read", "refused"];
    #[doc = "Virtual machines replaced, by why"]
    vms_replaced: counters "trackalert_vms_replaced_total" ["why": "age", "reload", "spoiled", "stuck"];
    #[doc = "Virtual machines there are, those in which earlier reports end included"]
    vms: gauge "trackalert_vms";
    #[doc = "Bytes of Lua memory over all workers"]
    vm_bytes: gauge "trackalert_vm_bytes";
    #[doc = "Workers abandoned in C code that does not come back"]
    workers_stuck: gauge "trackalert_workers_stuck";
    #[doc = "Reloads of the policies, by outcome"]
    reloads: counters "trackalert_reloads_total" ["outcome": "done", "refused"];

    // history and state
    #[doc = "Reports stored in the history"]
    stored: counter "trackalert_history_stored_total";
    #[doc = "Time of one commit of the history"]
    commit: histogram "trackalert_history_commit_duration_seconds";
    #[doc = "Time of one search"]
    search: histogram "trackalert_history_search_duration_seconds";
    #[doc = "Entries of the state removed because they had expired"]
    swept: counter "trackalert_state_swept_total";

    // notify
    #[doc = "Alerts raised, by severity"]
    alerts: counters "trackalert_alerts_total" ["severity": "info", "low", "medium", "high", "critical"];
    #[doc = "Alerts not sent because the same was sent within the window"]
    suppressed: counter "trackalert_alerts_suppressed_total";
    #[doc = "Alerts sent, by kind of channel"]
    sent: counters "trackalert_alerts_sent_total" ["channel": "log", "webhook"];
    #[doc = "From an alert's publication to its last channel's answer"]
    notify: histogram "trackalert_notify_duration_seconds";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Prometheus text.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Writing text into memory has no way to fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_keeps_the_databases_quiet_and_a_filter_is_taken_as_it_is() {
        assert_eq!(filter("info"), "info,fjall=warn,lsm_tree=warn,tantivy=warn,lapin=off");
        assert_eq!(filter(" DEBUG "), "DEBUG,fjall=warn,lsm_tree=warn,tantivy=warn,lapin=off");
        for as_it_is in ["error", "warn", "off", "info,fjall=debug", "info,trackalert::detect=debug"] {
            assert_eq!(filter(as_it_is), as_it_is);
            assert!(EnvFilter::try_new(filter(as_it_is)).is_ok());
        }
    }

    #[test]
    fn every_metric_is_there_with_value_zero_from_the_start() {
        let text = Metrics::new().render();
        for line in [
            "trackalert_commands_total{cmd=\"report\"} 0",
            "trackalert_commands_total{cmd=\"stats\"} 0",
            "trackalert_commands_total{cmd=\"custom\"} 0",
            "trackalert_worker_queue_duration_seconds_bucket{le=\"0.001\"} 0",
            "trackalert_worker_response_duration_seconds_bucket{le=\"0.001\"} 0",
            "trackalert_active_http_connections 0",
            "trackalert_dead_letters{queue=\"reports\"} 0",
        ] {
            assert!(text.contains(line), "{line} is missing");
        }
    }
}
