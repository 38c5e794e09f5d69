//! The scripts in `pipelines/`, as a user runs them. What they write or send is decoded back on this
//! machine and judged: how many frames, how large and how fast, whether the prompt's place is on
//! screen, and whether anything moves.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod air;
mod control;
mod files;
mod latency;
mod look;
mod obs;
mod outage;
mod refusals;
mod relay;
mod script;
mod server;
