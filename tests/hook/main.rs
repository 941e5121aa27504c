//! The hook as libvirt runs it, on the fake host: one file for each subject.

mod by_hand;
mod chain;
mod check;
mod commands;
mod docs;
mod dry;
mod endings;
mod explain;
mod failures;
mod hotplug;
mod input;
mod kills;
mod list;
mod moves;
mod parking;
mod parser;
mod plain;
mod pools;
mod races;
mod refusals;
mod requests;
mod resolve;
mod rhel7;
mod scale;
mod sriov;
mod trouble;
