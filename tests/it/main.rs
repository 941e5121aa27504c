//! The programs on the fake host: a folder for who calls them, a file for each subject.

/// What libvirt calls.
mod hook {
    mod bad_input;
    mod domain_parser;
    mod filters;
    mod guard;
    mod isolation;
    mod kernel_failures;
    mod kills;
    mod other_hooks;
    mod pool_requests;
    pub(crate) mod races;
    mod recovery;
    mod refusals;
    mod scale;
    mod sriov;
    mod start_and_stop;
}

/// What the admin and the systemd units call.
mod commands {
    pub(crate) mod check;
    mod definition_edits;
    mod dry_run;
    mod dumpxml;
    pub(crate) mod explain;
    mod hotplug;
    pub(crate) mod list;
    mod parking;
    mod release;
    mod requests;
    mod setup;
    mod start;
}

/// What is installed beside the programs: man pages, completion, rules, units.
mod packaging {
    mod completion;
    mod deb;
    mod man_pages;
    mod rhel7;
}
