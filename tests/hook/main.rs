//! The hook as libvirt runs it, on the fake host: one file for each subject.

#[path = "../fakehost/mod.rs"]
mod fakehost;

mod chain;
mod commands;
mod endings;
mod failures;
mod input;
mod kills;
mod moves;
mod parking;
mod parser;
mod plain;
mod pools;
mod races;
mod refusals;
mod requests;
mod resolve;
mod scale;
mod sriov;
mod trouble;
