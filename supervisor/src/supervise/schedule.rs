//! When a task is due next, and the record of its last run: pure but for the two functions at the end.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::state::Ms;
use crate::state_folder;
use crate::status::time::local;
use crate::time::cron::next_after;

use super::spec::{Schedule, When};

/// A clock that was put back by less than this repeats no run: what was due in between has run already. More is a
/// correction, and the new time counts. (cron(8) has the same three hours.)
const REPEATED: i64 = 3 * 3600;

/// The longest record of a run, in bytes.
const LONGEST_RECORD: u64 = 1 << 16;

/// What the file of a task that has not run says before the time.
const KNOWN: &str = "known=";

/// Seconds of the Unix epoch, by the wall clock.
pub type Seconds = i64;

/// What is known of a task's last run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// When it began.
    pub began: Seconds,
    /// When it ended; `None`: it has not, or not under our eyes.
    pub ended: Option<Seconds>,
    /// How it ended, in words.
    pub how: String,
    /// It ended well.
    pub well: bool,
}

impl Record {
    /// Lines `name=value`.
    pub fn to_text(&self) -> String {
        let ended = self.ended.map_or(String::new(), |at| at.to_string());
        format!(
            "began={}\nended={ended}\nwell={}\nhow={}\n",
            self.began,
            self.well,
            self.how.replace('\n', " ")
        )
    }

    /// Reads what [`Self::to_text`] wrote; `None`: it is something else.
    pub fn from_text(text: &str) -> Option<Self> {
        let value = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')))
        };
        Some(Self {
            began: value("began")?.parse().ok()?,
            ended: value("ended").and_then(|text| text.parse().ok()),
            how: value("how").unwrap_or("").to_owned(),
            well: value("well") == Some("true"),
        })
    }
}

/// When a task is due next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// By the wall clock, in seconds of the epoch.
    pub at_time: Option<Seconds>,
    /// By our clock.
    pub at: Option<Ms>,
    /// The latest time by the wall clock at which it was due and treated so.
    done: Option<Seconds>,
    /// How often it was started.
    pub runs: u32,
}

impl Plan {
    /// The plan at the start of the supervisor, at `now` on its clock and `time` on the wall's, and whether a run was missed
    /// that shall be caught up. `last`: when it began last, or when it came to be known.
    pub fn begin(schedule: &Schedule, now: Ms, time: Seconds, last: Option<Seconds>) -> (Self, bool) {
        let last = last.filter(|_| schedule.catch_up);
        match &schedule.when {
            When::Start | When::Asked => (Self::default(), false),
            When::Every(span) => {
                let passed = last.map_or(0, |last| elapsed(last, time));
                let missed = passed >= *span;
                let left = if missed { *span } else { span - passed };
                (Self { at: Some(now.saturating_add(left)), ..Self::default() }, missed)
            }
            When::Cron(cron) => {
                let missed =
                    last.and_then(|last| next_after(&cron.0, last, &cron.1)).is_some_and(|at| at <= time);
                (Self { at_time: next_after(&cron.0, time, &cron.1), ..Self::default() }, missed)
            }
        }
    }

    /// Looks at both clocks; true if the task is due. The plan is then the next one. Whatever a clock did, a run that was
    /// passed over is due once.
    pub fn look(&mut self, schedule: &Schedule, now: Ms, time: Seconds) -> bool {
        match &schedule.when {
            When::Start | When::Asked => false,
            When::Every(span) => {
                let due = self.at.is_some_and(|at| at <= now);
                if due {
                    self.at = Some(now.saturating_add(*span));
                }
                due
            }
            When::Cron(cron) => {
                let due = self.at_time.is_some_and(|at| at <= time);
                if due {
                    self.done = Some(time);
                }
                let from = self.done.filter(|done| *done > time && *done - time < REPEATED).unwrap_or(time);
                self.at_time = next_after(&cron.0, from, &cron.1);
                due
            }
        }
    }

    /// Somebody, or the schedule, has begun a run at `now`.
    pub fn began(&mut self, schedule: &Schedule, now: Ms) {
        self.runs = self.runs.saturating_add(1);
        if let When::Every(span) = schedule.when {
            self.at = Some(now.saturating_add(span));
        }
    }

    /// The same plan with `to` of each time on our clock.
    #[must_use]
    pub fn with_times(self, to: &dyn Fn(Ms) -> Ms) -> Self {
        Self { at: self.at.map(to), ..self }
    }

    /// When it is due on the clock that its schedule goes by, in words; an interval goes by none, and has UTC.
    pub fn due_at(&self, schedule: &Schedule, now: Ms, time_ms: i64) -> Option<String> {
        let left = i64::try_from(self.in_ms(now, time_ms)?).ok()?;
        let at = self.at_time.unwrap_or(time_ms.saturating_add(left) / 1000);
        let offset = match &schedule.when {
            When::Cron(cron) => cron.1.period_at(at).offset,
            _ => 0,
        };
        Some(local(at, offset))
    }

    /// Milliseconds until it is due.
    pub fn in_ms(&self, now: Ms, time_ms: i64) -> Option<Ms> {
        let by_time = self
            .at_time
            .map(|at| u64::try_from(at.saturating_mul(1000).saturating_sub(time_ms)).unwrap_or(0));
        self.at.map(|at| at.saturating_sub(now)).into_iter().chain(by_time).min()
    }
}

/// Milliseconds between two times; 0 if the clock was put back between them.
pub fn elapsed(from: Seconds, to: Seconds) -> Ms {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0).saturating_mul(1000)
}

/// What a task's file in this folder says: how its last run went, if there was one; and since when what was due has been
/// missed, which is when that run began, or when a task that has not run yet came to be known.
pub fn read_record(folder: &Path, task: &str) -> (Option<Record>, Option<Seconds>) {
    let bytes = state_folder::read(&folder.join(task), LONGEST_RECORD).unwrap_or_default();
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    match Record::from_text(text) {
        Some(record) => (Some(record.clone()), Some(record.began)),
        None => (None, text.trim_end().strip_prefix(KNOWN).and_then(|since| since.parse().ok())),
    }
}

/// Writes a task's record.
pub fn write_record(folder: &Path, task: &str, record: &Record) -> io::Result<()> {
    write(folder, task, &record.to_text())
}

/// Writes that a task has not run and is known since `time`, until its first record takes the place of that.
pub fn write_known(folder: &Path, task: &str, time: Seconds) -> io::Result<()> {
    write(folder, task, &format!("{KNOWN}{time}\n"))
}

/// Writes a task's file: whole, or not at all. A few bytes, so that the loop can wait for it.
fn write(folder: &Path, task: &str, text: &str) -> io::Result<()> {
    state_folder::make_private(folder)?;
    let part = folder.join(format!(".{task}.part"));
    state_folder::create(&part)?.write_all(text.as_bytes())?;
    fs::rename(&part, folder.join(task))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::cron::Expression;
    use crate::time::zone::Zone;
    use kitbag_format::service::Overlap;

    const HOUR: i64 = 3600;

    fn cron(text: &str, catch_up: bool) -> Schedule {
        let expression = Expression::parse(text).expect("an expression");
        let when = When::Cron(Box::new((expression, Zone::utc())));
        Schedule { when, overlap: Overlap::Skip, catch_up }
    }

    fn every(span: Ms, catch_up: bool) -> Schedule {
        Schedule { when: When::Every(span), overlap: Overlap::Skip, catch_up }
    }

    #[test]
    fn a_run_is_due_at_its_time_and_then_the_next_is_planned() {
        let nightly = cron("0 3 * * *", false);
        let (mut plan, missed) = Plan::begin(&nightly, 0, 0, None);
        assert_eq!((plan.at_time, missed), (Some(3 * HOUR), false));
        assert!(!plan.look(&nightly, 0, 3 * HOUR - 1));
        assert!(plan.look(&nightly, 0, 3 * HOUR));
        assert_eq!(plan.at_time, Some(27 * HOUR));
        assert_eq!(plan.in_ms(0, 27 * HOUR * 1000 - 5), Some(5));
        assert_eq!(plan.due_at(&nightly, 0, 0).as_deref(), Some("1970-01-02T03:00:00Z"));
    }

    #[test]
    fn a_clock_that_jumps_over_runs_makes_one_of_them() {
        let nightly = cron("0 3 * * *", false);
        let (mut plan, _) = Plan::begin(&nightly, 0, 0, None);
        assert!(plan.look(&nightly, 0, 100 * HOUR));
        assert!(!plan.look(&nightly, 0, 100 * HOUR));
        assert_eq!(plan.at_time, Some(123 * HOUR));
    }

    #[test]
    fn a_clock_that_is_put_back_a_little_repeats_nothing_and_one_put_back_far_counts() {
        let hourly = cron("0 * * * *", false);
        let (mut plan, _) = Plan::begin(&hourly, 0, 1000 * HOUR - 1, None);
        assert!(plan.look(&hourly, 0, 1000 * HOUR));
        assert!(!plan.look(&hourly, 0, 999 * HOUR - 60));
        assert_eq!(plan.at_time, Some(1001 * HOUR), "999 and 1000 were before");
        assert!(!plan.look(&hourly, 0, 500 * HOUR - 60));
        assert_eq!(plan.at_time, Some(500 * HOUR), "the clock was wrong before");
    }

    #[test]
    fn an_interval_counts_from_each_beginning() {
        let often = every(5_000, false);
        let (mut plan, missed) = Plan::begin(&often, 100, 0, None);
        assert_eq!((plan.at, missed), (Some(5_100), false));
        assert!(!plan.look(&often, 5_099, 0));
        assert!(plan.look(&often, 5_200, 0));
        assert_eq!(plan.at, Some(10_200));
        plan.began(&often, 6_000);
        assert_eq!(plan.at, Some(11_000));
    }

    #[test]
    fn an_interval_does_not_heed_the_wall_clock() {
        let often = every(5_000, false);
        let (mut plan, _) = Plan::begin(&often, 0, 1000 * HOUR, None);
        for time in [2000 * HOUR, 0, -HOUR, i64::MAX, i64::MIN] {
            assert!(!plan.look(&often, 4_999, time), "{time}");
            assert_eq!(plan.in_ms(4_999, time), Some(1));
        }
        assert!(plan.look(&often, 5_000, -HOUR));
    }

    #[test]
    fn a_last_run_in_the_future_delays_nothing_longer_than_its_schedule() {
        // Written by a clock that was a hundred years ahead.
        let last = Some(876_000 * HOUR);
        let (plan, missed) = Plan::begin(&every(5_000, true), 100, 50 * HOUR, last);
        assert_eq!((plan.at, missed), (Some(5_100), false));
        let (mut plan, missed) = Plan::begin(&cron("0 3 * * *", true), 0, 50 * HOUR, last);
        assert_eq!((plan.at_time, missed), (Some(51 * HOUR), false));
        assert!(plan.look(&cron("0 3 * * *", true), 0, 51 * HOUR));
    }

    #[test]
    fn whatever_the_clock_does_a_run_is_due_once_for_each_time_and_the_next_is_near() {
        let hourly = cron("0 * * * *", false);
        let (mut plan, _) = Plan::begin(&hourly, 0, 1000 * HOUR + 1, None);
        let mut time = 1000 * HOUR + 1;
        for jump in [1, HOUR, -60, 5000 * HOUR, -2 * HOUR, -4000 * HOUR, 30, 7 * HOUR, -HOUR, 86_400 * 365] {
            time += jump;
            let _ = plan.look(&hourly, 0, time);
            assert!(!plan.look(&hourly, 0, time), "twice at {time}");
            // At most the hours that were repeated, and one.
            let next = plan.at_time.expect("there is always a next hour");
            assert!(next > time && next <= time + REPEATED + HOUR, "{next} after {time}");
        }
    }

    #[test]
    fn a_run_that_was_missed_is_caught_up_where_that_is_wanted() {
        let begin = |schedule: &Schedule, last| Plan::begin(schedule, 0, 100 * HOUR, last).1;
        assert!(begin(&cron("0 3 * * *", true), Some(50 * HOUR)));
        assert!(!begin(&cron("0 3 * * *", true), Some(99 * HOUR + 1)));
        assert!(!begin(&cron("0 3 * * *", true), None), "a first start has missed nothing");
        assert!(!begin(&cron("0 3 * * *", false), Some(50 * HOUR)));
        assert!(begin(&every(3_600_000, true), Some(99 * HOUR)));
        let (plan, missed) = Plan::begin(&every(3_600_000, true), 0, 100 * HOUR, Some(100 * HOUR - 600));
        assert_eq!((plan.at, missed), (Some(3_000_000), false));
    }

    #[test]
    fn a_task_that_never_ran_was_missed_since_it_is_known() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = || read_record(folder.path(), "backup");
        assert_eq!(read(), (None, None));
        let (evening, morning) = (20 * HOUR, 32 * HOUR);
        write_known(folder.path(), "backup", evening).expect("it can be written");
        assert_eq!(read(), (None, Some(evening)));
        let task = cron("0 3 * * *", true);
        assert!(!Plan::begin(&task, 0, evening, Some(evening)).1, "nothing was missed at the first start");
        assert!(Plan::begin(&task, 0, morning, Some(evening)).1);
        let record = Record { began: morning, ..Record::default() };
        write_record(folder.path(), "backup", &record).expect("it can be written");
        assert_eq!(read(), (Some(record), Some(morning)));
        fs::write(folder.path().join("backup"), "known=soon\n").expect("it can be written");
        assert_eq!(read(), (None, None), "what makes no sense says nothing");
    }

    #[test]
    fn folders_that_are_made_again_for_a_record_are_its_users_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        write_known(&state.join(".kitbag/tasks"), "backup", 5).expect("it can be written");
        for made in [&state, &state.join(".kitbag")] {
            let mode = fs::metadata(made).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", made.display());
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = std::env::temp_dir().join(format!("kitbag-record-{}", std::process::id()));
        let record = Record { began: 5, ended: Some(7), how: "exited with\nstatus 0".into(), well: true };
        write_record(&folder, "backup", &record).expect("it can be written");
        let read = read_record(&folder, "backup");
        fs::remove_dir_all(&folder).expect("it can be removed");
        assert_eq!(read.0, Some(Record { how: "exited with status 0".into(), ..record }));
        assert_eq!(Record::from_text("nonsense"), None);
        let running = Record { began: 5, ..Record::default() };
        assert_eq!(Record::from_text(&running.to_text()), Some(running));
    }
}
