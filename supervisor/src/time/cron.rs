//! When a task is due: crontab(5) expressions in a time zone. Pure: no clock is read. `format/` reads them.
//!
//! Where both days are given and neither begins with `*`, one of them suffices.
//!
//! Where clocks are changed, the rule is Vixie cron's, cron(8):
//!
//! - An expression whose minute or hour begins with `*` goes by real time: it runs each time that the clock shows what
//!   fits. `*/10 * * * *` runs every ten minutes of the night, in an hour that comes twice twice.
//! - Any other names times of the day. A time that the clock skips is made up for when it has skipped it, once however
//!   many were skipped; a time that comes twice is used the first time.

pub use kitbag_format::cron::{CronError, Expression, Field};

use crate::time::date::{date_of, days_of, weekday_of};
use crate::time::zone::{Period, Zone};

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 86_400;
/// After so many days the calendar repeats itself, days of the week too.
const CALENDAR: i64 = 146_097;
/// Changes of the clock that the search for times shown before looks back over.
const LOOK_BACK: usize = 4;

/// The first time after `unix_seconds` that it is due, both in seconds of the Unix epoch; `None` if that is not within the
/// 400 years after which the calendar repeats itself. See the module for days on which clocks are changed.
pub fn next_after(expression: &Expression, unix_seconds: i64, zone: &Zone) -> Option<i64> {
    // No sum in here overflows: 10^12 seconds are 31,700 years.
    let after = unix_seconds.clamp(-1_000_000_000_000, 1_000_000_000_000);
    let last = after + CALENDAR * DAY;
    let mut period = zone.period_at(after + 1);
    loop {
        let due = due_in(expression, period, after + 1, zone);
        if due.is_some() || period.end > last {
            return due;
        }
        period = zone.period_at(period.end);
    }
}

/// The first time in a period, `from` or later, that it is due.
fn due_in(expression: &Expression, period: Period, from: i64, zone: &Zone) -> Option<i64> {
    let offset = i64::from(period.offset);
    let start = period.start.max(from) + offset;
    let end = period.end.min(from + CALENDAR * DAY).saturating_add(offset);
    let shown = if goes_by_real_time(expression) { None } else { shown_before(period, zone) };
    let Some(shown) = shown else { return find(expression, start, end).map(|local| local - offset) };
    let skipped = from <= period.start && find(expression, shown, period.start + offset).is_some();
    if skipped {
        return Some(period.start);
    }
    find(expression, start.max(shown), end).map(|local| local - offset)
}

const fn goes_by_real_time(expression: &Expression) -> bool {
    expression.minute.star || expression.hour.star
}

/// The first full minute that fits, from `start` to before `end`, in seconds of a local clock.
fn find(expression: &Expression, start: i64, end: i64) -> Option<i64> {
    let mut at = start.div_euclid(MINUTE) * MINUTE;
    if at < start {
        at += MINUTE;
    }
    while at < end {
        let days = at.div_euclid(DAY);
        let (year, month, day) = date_of(days);
        if !expression.month.has(month) {
            at = days_of(if month == 12 { year + 1 } else { year }, month % 12 + 1, 1) * DAY;
            continue;
        }
        if fits_day(expression, day, weekday_of(days))
            && let Some(second) = find_in_day(expression, at.rem_euclid(DAY))
        {
            return Some(days * DAY + second).filter(|found| *found < end);
        }
        at = (days + 1) * DAY;
    }
    None
}

const fn fits_day(expression: &Expression, day: u32, weekday: u32) -> bool {
    let (by_month, by_week) = (expression.day_of_month.has(day), expression.day_of_week.has(weekday));
    if expression.day_of_month.star || expression.day_of_week.star {
        by_month && by_week
    } else {
        by_month || by_week
    }
}

/// The first time of a day that fits, from this one on, in seconds after midnight.
fn find_in_day(expression: &Expression, from: i64) -> Option<i64> {
    let (hour, minute) = ((from / HOUR) as u32, (from % HOUR / MINUTE) as u32);
    let this_hour = expression.hour.has(hour).then(|| expression.minute.at_least(minute)).flatten();
    let (hour, minute) = match this_hour {
        Some(minute) => (hour, minute),
        None => (expression.hour.at_least(hour + 1)?, expression.minute.at_least(0)?),
    };
    Some(i64::from(hour) * HOUR + i64::from(minute) * MINUTE)
}

/// Up to what time the local clock had come before a period began; `None` if it never had another offset.
fn shown_before(period: Period, zone: &Zone) -> Option<i64> {
    let mut start = period.start;
    let mut shown = None;
    for _ in 0..LOOK_BACK {
        if start == i64::MIN {
            break;
        }
        let before = zone.period_at(start - 1);
        shown = shown.max(Some(start.saturating_add(i64::from(before.offset))));
        start = before.start;
    }
    shown
}
