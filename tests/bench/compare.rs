//! `compare RUNS INPUT NAME COMMAND [NAME COMMAND]...`: times whole processes in turn, and prints each one's median and
//! its ratio to the first. A command gets INPUT on standard input, as libvirt gives a hook the guest's XML; what
//! follows ` ++ ` in it is run after each time, uncounted, to undo it.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Contestant {
    name: String,
    command: Vec<String>,
    undo: Option<Vec<String>>,
    times: Vec<Duration>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [runs, input, contestants @ ..] = arguments.as_slice() else { panic!("compare RUNS INPUT NAME COMMAND...") };
    let runs: usize = runs.parse().expect("RUNS is a number");
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut contestants: Vec<Contestant> = contestants
        .chunks_exact(2)
        .map(|pair| {
            let (command, undo) = pair[1].split_once(" ++ ").map_or((pair[1].as_str(), None), |(a, b)| (a, Some(b)));
            Contestant { name: pair[0].clone(), command: words(command), undo: undo.map(words), times: Vec::new() }
        })
        .collect();
    // The first round warms the caches.
    for round in 0..=runs {
        for contestant in &mut contestants {
            let time = run(&contestant.command, input);
            if let Some(undo) = &contestant.undo {
                run(undo, input);
            }
            if round > 0 {
                contestant.times.push(time);
            }
        }
    }
    let median = |contestant: &mut Contestant| {
        contestant.times.sort_unstable();
        contestant.times[contestant.times.len() / 2]
    };
    let first = median(&mut contestants[0]);
    for contestant in &mut contestants {
        let median = median(contestant);
        let ratio = median.as_secs_f64() / first.as_secs_f64();
        println!("{ratio:7.2}x  {:9.3} ms  {}", median.as_secs_f64() * 1000.0, contestant.name);
    }
}

fn run(command: &[String], input: &str) -> Duration {
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).stdin(File::open(input).expect("INPUT can be read")).stdout(Stdio::null());
    let begun = Instant::now();
    let status = process.status().unwrap_or_else(|cause| panic!("{}: {cause}", command[0]));
    let time = begun.elapsed();
    assert!(status.success(), "{} failed: {status}", command.join(" "));
    time
}
