//! Answers about all units, made a few units at a time, so that one about a thousand of them holds nothing up. What they
//! tell is of one moment; only what processes use is looked up on the way.

use std::time::{Duration, Instant};

use super::{App, routes};
use crate::snapshot::SnapshotText;
use crate::status::StatusText;
use crate::status::metrics;

/// How long the loop is held at a time.
const SLICE: Duration = Duration::from_millis(1);

/// An answer in the making.
pub(super) enum Making {
    /// `GET /v1/status`
    Status(StatusText),
    /// `GET /v1/snapshot`
    Snapshot(SnapshotText),
    /// `GET /metrics`
    Metrics(metrics::Page),
}

impl Making {
    pub(super) fn status(app: &mut dyn App) -> Self {
        Self::Status(StatusText::new(app.status()))
    }

    pub(super) fn snapshot(app: &mut dyn App) -> Self {
        Self::Snapshot(SnapshotText::new(app.snapshot()))
    }

    pub(super) fn metrics(app: &mut dyn App) -> Self {
        Self::Metrics(metrics::Page::new(app.status()))
    }

    /// Goes on until [`SLICE`] after `since`, the beginning of this turn; true if it is done.
    pub(super) fn go_on(&mut self, since: Instant) -> bool {
        while since.elapsed() < SLICE {
            let more = match self {
                Self::Status(text) => text.step(),
                Self::Snapshot(text) => text.step(),
                Self::Metrics(page) => page.step(),
            };
            if !more {
                return true;
            }
        }
        false
    }

    /// Content type and body, once it is done.
    pub(super) fn finish(self) -> (&'static str, String) {
        match self {
            Self::Status(text) => (routes::JSON, text.into_text()),
            Self::Snapshot(text) => (routes::JSON_LINES, text.into_text()),
            Self::Metrics(page) => (metrics::CONTENT_TYPE, page.into_text()),
        }
    }
}
