//! A bar for what takes longer than a second, on a terminal only.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long a thing may take before a bar is worth drawing.
const PATIENCE: Duration = Duration::from_secs(1);

/// The progress of one thing.
pub struct Progress {
    label: &'static str,
    since: Instant,
    quiet: bool,
    bar: OnceLock<ProgressBar>,
}

impl Progress {
    /// Begins to count the time. `label` is what happens: `packing`.
    pub fn new(label: &'static str, quiet: bool) -> Self {
        Self { label, since: Instant::now(), quiet, bar: OnceLock::new() }
    }

    /// Tells how many bytes of all are done.
    pub fn set(&self, done: u64, all: u64) {
        if !self.quiet && self.since.elapsed() > PATIENCE {
            self.bar.get_or_init(|| bar(self.label, all)).set_position(done);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

fn bar(label: &'static str, all: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {percent}% {bytes}/{total_bytes}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.with_message(label)
}
