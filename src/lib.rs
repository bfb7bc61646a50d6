//! Trackalert: takes login reports, compares each with the history of its account and of the whole system, and tells people.
//!
//! The modules stand in the order in which a report flows:
//!
//! ```text
//! wforce, Dovecot ──HTTP──▶ receive ──▶ [ reports queue ] ──▶ detect ──▶ history
//!                                                              │  report(lt)
//!                                       [ alerts queue ] ◀─────┘
//!                                              └──▶ notify ──▶ log, webhooks
//! ```
//!
//! | question | file |
//! |---|---|
//! | what is a report, what is malformed | [`report`], [`decode`] |
//! | what is added to one: its device, its place | [`device`], [`geoip`] |
//! | how does one arrive, when is it answered | [`receive`], [`http`] |
//! | when is a message done, what is handed out again | [`queue`] |
//! | which report may run now, what happens after a handler | [`detect`] |
//! | what may a policy call, what stops it | [`policy`] |
//! | what is remembered, for how long | [`history`], [`state`] |
//! | what is an alert, who is told, when not | [`alert`], [`notify`] |
//! | what runs on a clock | [`schedule`] |
//! | does a policy do what its tests say | [`harness`] |
//! | what is set where | [`config`] and `config/default.toml` |
//! | in which order does it all start and stop | [`app`] |

mod complaints;
pub mod config;
pub mod console;
pub mod health;
pub mod outbound;
pub mod perfstats;
pub mod settings;
pub mod stamp;
pub mod telemetry;

pub mod decode;
pub mod device;
pub mod geoip;
pub mod report;

pub mod queue;
pub mod store;

pub mod http;
pub mod receive;

pub mod detect;
pub mod history;
pub mod policy;
pub mod state;

pub mod alert;
pub mod notify;
pub mod schedule;

pub mod app;
pub mod cli;
pub mod demo;
pub mod harness;
