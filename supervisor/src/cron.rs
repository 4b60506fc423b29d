//! When a task is due: crontab(5) expressions in a time zone. Pure: no clock is read.
//!
//! Five fields, minute, hour, day of month, month, day of week, with lists, ranges, steps and names; or `@daily` and
//! its like. Where both days are given and neither begins with `*`, one of them suffices.
//!
//! Where clocks are changed, the rule is Vixie cron's, cron(8):
//!
//! - An expression whose minute or hour begins with `*` goes by real time: it runs each time that the clock shows what
//!   fits. `*/10 * * * *` runs every ten minutes of the night, in an hour that comes twice twice.
//! - Any other names times of the day. A time that the clock skips is made up for when it has skipped it, once however
//!   many were skipped; a time that comes twice is used the first time.

use std::fmt;

use crate::date::{date_of, days_of, weekday_of};
use crate::zone::{Period, Zone};

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 86_400;
/// After so many days the calendar repeats itself, days of the week too.
const CALENDAR: i64 = 146_097;
/// Changes of the clock that the search for times shown before looks back over.
const LOOK_BACK: usize = 4;

/// A field of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// 0 to 59
    Minute,
    /// 0 to 23
    Hour,
    /// 1 to 31
    DayOfMonth,
    /// 1 to 12, or `jan` to `dec`
    Month,
    /// 0 to 7, or `sun` to `sat`; 0 and 7 are Sunday
    DayOfWeek,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Field {
    const fn limits(self) -> (u32, u32) {
        match self {
            Self::Minute => (0, 59),
            Self::Hour => (0, 23),
            Self::DayOfMonth => (1, 31),
            Self::Month => (1, 12),
            Self::DayOfWeek => (0, 7),
        }
    }

    /// Names, the first of which stands for the lowest value.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Month => &MONTHS,
            Self::DayOfWeek => &WEEKDAYS,
            _ => &[],
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day of the month",
            Self::Month => "month",
            Self::DayOfWeek => "day of the week",
        }
    }
}

/// What is wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CronError {
    /// Another number of fields than five.
    Fields(usize),
    /// `@` with a word that is not known.
    Word(String),
    /// A part that is neither `*`, nor a value of the field, nor a range of them, each with a step or not.
    Value(Field, String),
    /// A range whose end is before its beginning.
    Range(Field, String),
    /// A step that is 0 or longer than what it steps through.
    Step(Field, String),
    /// A step behind a single value: `5/10`.
    StepOfOne(Field, String),
}

impl fmt::Display for CronError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields(count) => write!(
                to,
                "it has {count} fields instead of 5: minute, hour, day of the month, month, day of the week"
            ),
            Self::Word(word) if word == "@reboot" => {
                to.write_str("`@reboot` is no schedule: a task without one runs when the bundle starts")
            }
            Self::Word(word) => {
                write!(to, "`{word}` is not known;")?;
                WORDS.iter().enumerate().try_for_each(|(index, (word, _))| {
                    write!(to, "{} `{word}`", if index == 0 { "" } else { "," })
                })?;
                to.write_str(" are")
            }
            Self::Value(field, text) => {
                let (least, most) = field.limits();
                write!(to, "{}: `{text}` is not one of {least} to {most}", field.title())?;
                if let [first, .., last] = field.names() {
                    write!(to, ", `{first}` to `{last}`")?;
                }
                write!(to, ", `*`, a range `{least}-{most}`, or a step `*/2`, or a list of them with commas")
            }
            Self::Range(field, text) => {
                write!(to, "{}: the range `{text}` ends before it begins", field.title())
            }
            Self::Step(field, text) => {
                write!(to, "{}: the step of `{text}` is 0 or longer than its range", field.title())
            }
            Self::StepOfOne(field, text) => {
                let (value, step) = text.split_once('/').unwrap_or((text, ""));
                let (_, most) = field.limits();
                write!(
                    to,
                    "{}: `{text}` steps from a single value; `{value}-{most}/{step}` has a range",
                    field.title()
                )
            }
        }
    }
}

impl std::error::Error for CronError {}

/// Words that stand for an expression.
const WORDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// The values of a field that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set {
    /// Bit 5: the value 5 fits.
    bits: u64,
    /// It was written with `*` first.
    star: bool,
}

impl Set {
    const fn has(self, value: u32) -> bool {
        self.bits >> value & 1 == 1
    }

    /// The least value from this one on.
    const fn at_least(self, value: u32) -> Option<u32> {
        let rest = if value < 64 { self.bits >> value } else { 0 };
        if rest == 0 { None } else { Some(value + rest.trailing_zeros()) }
    }
}

/// A crontab(5) expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    minute: Set,
    hour: Set,
    day_of_month: Set,
    month: Set,
    day_of_week: Set,
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`CronError`], which names the field and what it may have.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let text = text.trim();
        if text.starts_with('@') {
            let known = WORDS.iter().find(|(word, _)| text.eq_ignore_ascii_case(word));
            return known
                .ok_or_else(|| CronError::Word(text.to_owned()))
                .and_then(|(_, expression)| Self::parse(expression));
        }
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let &[minute, hour, day_of_month, month, day_of_week] = fields.as_slice() else {
            return Err(CronError::Fields(fields.len()));
        };
        let mut days = parse_field(Field::DayOfWeek, day_of_week)?;
        days.bits = (days.bits | days.bits >> 7) & 0x7f;
        Ok(Self {
            minute: parse_field(Field::Minute, minute)?,
            hour: parse_field(Field::Hour, hour)?,
            day_of_month: parse_field(Field::DayOfMonth, day_of_month)?,
            month: parse_field(Field::Month, month)?,
            day_of_week: days,
        })
    }

    /// The first time after `unix_seconds` that it is due, both in seconds of the Unix epoch; `None` if it never is, as on
    /// February 30. See the module for days on which clocks are changed.
    pub fn next_after(&self, unix_seconds: i64, zone: &Zone) -> Option<i64> {
        // No sum in here overflows: 10^12 seconds are 31,700 years.
        let after = unix_seconds.clamp(-1_000_000_000_000, 1_000_000_000_000);
        let last = after + CALENDAR * DAY;
        let mut period = zone.period_at(after + 1);
        loop {
            let due = self.due_in(period, after + 1, zone);
            if due.is_some() || period.end > last {
                return due;
            }
            period = zone.period_at(period.end);
        }
    }

    /// The first time in a period, `from` or later, that it is due.
    fn due_in(&self, period: Period, from: i64, zone: &Zone) -> Option<i64> {
        let offset = i64::from(period.offset);
        let start = period.start.max(from) + offset;
        let end = period.end.min(from + CALENDAR * DAY).saturating_add(offset);
        let shown = if self.goes_by_real_time() { None } else { shown_before(period, zone) };
        let Some(shown) = shown else { return self.find(start, end).map(|local| local - offset) };
        let skipped = from <= period.start && self.find(shown, period.start + offset).is_some();
        if skipped {
            return Some(period.start);
        }
        self.find(start.max(shown), end).map(|local| local - offset)
    }

    const fn goes_by_real_time(&self) -> bool {
        self.minute.star || self.hour.star
    }

    /// The first full minute that fits, from `start` to before `end`, in seconds of a local clock.
    fn find(&self, start: i64, end: i64) -> Option<i64> {
        let mut at = start.div_euclid(MINUTE) * MINUTE;
        if at < start {
            at += MINUTE;
        }
        while at < end {
            let days = at.div_euclid(DAY);
            let (year, month, day) = date_of(days);
            if !self.month.has(month) {
                at = days_of(if month == 12 { year + 1 } else { year }, month % 12 + 1, 1) * DAY;
                continue;
            }
            if self.fits_day(day, weekday_of(days))
                && let Some(second) = self.find_in_day(at.rem_euclid(DAY))
            {
                return Some(days * DAY + second).filter(|found| *found < end);
            }
            at = (days + 1) * DAY;
        }
        None
    }

    const fn fits_day(&self, day: u32, weekday: u32) -> bool {
        let (by_month, by_week) = (self.day_of_month.has(day), self.day_of_week.has(weekday));
        if self.day_of_month.star || self.day_of_week.star {
            by_month && by_week
        } else {
            by_month || by_week
        }
    }

    /// The first time of a day that fits, from this one on, in seconds after midnight.
    fn find_in_day(&self, from: i64) -> Option<i64> {
        let (hour, minute) = ((from / HOUR) as u32, (from % HOUR / MINUTE) as u32);
        let this_hour = self.hour.has(hour).then(|| self.minute.at_least(minute)).flatten();
        let (hour, minute) = match this_hour {
            Some(minute) => (hour, minute),
            None => (self.hour.at_least(hour + 1)?, self.minute.at_least(0)?),
        };
        Some(i64::from(hour) * HOUR + i64::from(minute) * MINUTE)
    }
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

fn parse_field(field: Field, text: &str) -> Result<Set, CronError> {
    let mut set = Set { bits: 0, star: text.starts_with('*') };
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let (first, last) = parse_range(field, range, part)?;
        let step = match step {
            None => 1,
            Some(_) if first == last && !range.contains('-') => {
                return Err(CronError::StepOfOne(field, part.to_owned()));
            }
            Some(step) => {
                let step = number(step).ok_or_else(|| CronError::Value(field, part.to_owned()))?;
                if step == 0 || step > last - first {
                    return Err(CronError::Step(field, part.to_owned()));
                }
                step
            }
        };
        for value in (first..=last).step_by(step as usize) {
            set.bits |= 1 << value;
        }
    }
    Ok(set)
}

/// `*`, a value, or two with a dash: the first and the last value.
fn parse_range(field: Field, range: &str, part: &str) -> Result<(u32, u32), CronError> {
    let (least, most) = field.limits();
    if range == "*" {
        // Seven is Sunday for a second time.
        return Ok((least, if field == Field::DayOfWeek { 6 } else { most }));
    }
    let value = |text| value(field, text).ok_or_else(|| CronError::Value(field, part.to_owned()));
    let Some((first, last)) = range.split_once('-') else { return value(range).map(|only| (only, only)) };
    let (first, mut last) = (value(first)?, value(last)?);
    if field == Field::DayOfWeek && last == 0 && first > 0 {
        // `fri-sun`
        last = 7;
    }
    if first <= last { Ok((first, last)) } else { Err(CronError::Range(field, part.to_owned())) }
}

/// A number or name of a field.
fn value(field: Field, text: &str) -> Option<u32> {
    let (least, most) = field.limits();
    let named = field.names().iter().position(|name| text.eq_ignore_ascii_case(name));
    match named {
        Some(index) => Some(least + index as u32),
        None => number(text).filter(|value| (least..=most).contains(value)),
    }
}

/// Digits alone: `parse` would take a sign.
fn number(text: &str) -> Option<u32> {
    let is_short = (1..=4).contains(&text.len());
    if is_short && text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
