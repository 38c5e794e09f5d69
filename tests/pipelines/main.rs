//! The scripts in `pipelines/`, as a user runs them. What they write or send is decoded back on this
//! machine and judged: how many frames, how large and how fast, whether the prompt's place is on
//! screen, and whether anything moves.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod air;
mod files;
mod look;
mod refusals;
mod script;
mod server;
