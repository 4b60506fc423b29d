//! When a task is due, as it is written: crontab(5) expressions. The supervisor computes the times (its `cron.rs`), and
//! refuses what `kitbag pack` refuses: mistakes show while packing.
//!
//! Five fields, minute, hour, day of month, month, day of week, with lists, ranges, steps and names; or `@daily` and
//! its like.

use std::fmt;

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
    /// A step that is 0 or longer than what it steps through, whose length is this.
    Step(Field, String, u32),
    /// A step behind a single value: `5/10`.
    StepOfOne(Field, String),
    /// No month that fits has such a day; this is the first one.
    Never(u32),
}

impl fmt::Display for CronError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields(count) => write!(
                to,
                "expected five fields: minute, hour, day of the month, month, day of the week; found {count}"
            ),
            Self::Word(word) if word == "@reboot" => {
                to.write_str("a task without `schedule` runs when the bundle starts")
            }
            Self::Word(word) => {
                write!(to, "`{word}` is not known; expected ")?;
                words().try_for_each(|word| write!(to, "`{word}`, "))?;
                to.write_str("or five fields")
            }
            Self::Value(field, text) => {
                let ((least, most), title) = (field.limits(), field.title());
                write!(to, "`{text}`, {title}, is not from {least} to {most}")?;
                if let [first, .., last] = field.names() {
                    write!(to, " or `{first}` to `{last}`")?;
                }
                Ok(())
            }
            Self::Range(field, text) => {
                write!(to, "`{text}`, {}, runs backwards: write it as two, with a comma", field.title())
            }
            Self::Step(field, text, longest) => {
                write!(to, "the step of `{text}`, {}, is not from 1 to {longest}", field.title())
            }
            Self::StepOfOne(field, text) => {
                let (value, step) = text.split_once('/').unwrap_or((text, ""));
                let ((_, most), title) = (field.limits(), field.title());
                write!(to, "`{text}`, {title}: a step follows `*` or a range, write `{value}-{most}/{step}`")
            }
            Self::Never(day) => write!(to, "there is no day {day} in that month"),
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

/// The words that stand for an expression.
pub fn words() -> impl Iterator<Item = &'static str> {
    WORDS.iter().map(|(word, _)| *word)
}

/// The values of a field that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Bit 5: the value 5 fits.
    pub bits: u64,
    /// It was written with `*` first.
    pub star: bool,
}

impl Set {
    /// True if the value fits.
    pub const fn has(self, value: u32) -> bool {
        self.bits >> value & 1 == 1
    }

    /// The least value from this one on.
    pub const fn at_least(self, value: u32) -> Option<u32> {
        let rest = if value < 64 { self.bits >> value } else { 0 };
        if rest == 0 { None } else { Some(value + rest.trailing_zeros()) }
    }
}

/// A crontab(5) expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// 0 to 59
    pub minute: Set,
    /// 0 to 23
    pub hour: Set,
    /// 1 to 31
    pub day_of_month: Set,
    /// 1 to 12
    pub month: Set,
    /// 0 to 6; 0 is Sunday
    pub day_of_week: Set,
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
        let expression = Self {
            minute: parse_field(Field::Minute, minute)?,
            hour: parse_field(Field::Hour, hour)?,
            day_of_month: parse_field(Field::DayOfMonth, day_of_month)?,
            month: parse_field(Field::Month, month)?,
            day_of_week: days,
        };
        match expression.missing_day() {
            Some(day) => Err(CronError::Never(day)),
            None => Ok(expression),
        }
    }

    /// The first day of the month that it asks for, where none of its months has one of these days and the day of the week
    /// does not help.
    fn missing_day(&self) -> Option<u32> {
        const LENGTHS: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let either = !self.day_of_month.star && !self.day_of_week.star;
        let first = self.day_of_month.at_least(1)?;
        let has_it = |month: &u32| self.month.has(*month) && first <= LENGTHS[*month as usize - 1];
        (!either && !(1..=12).any(|month| has_it(&month))).then_some(first)
    }
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
                    return Err(CronError::Step(field, part.to_owned(), last - first));
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
    if first <= last { Ok((first, last)) } else { Err(CronError::Range(field, range.to_owned())) }
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

#[cfg(test)]
mod tests {
    use super::Expression;

    fn fault(text: &str) -> Option<String> {
        Expression::parse(text).err().map(|error| error.to_string())
    }

    #[test]
    fn expressions_of_crontab_are_taken() {
        for sound in [
            "* * * * *",
            "0 3 * * *",
            "*/15 0-6,22-23 1,15 jan-mar,DEC mon-fri",
            "0  4\t* * 7",
            "5-59/10 * * * sun",
            "0 0 29 2 *",
            "0 0 31 2 mon",
            "0 0 * * fri-sun",
            "*/59 0-0 * * */6",
            "@daily",
            "@midnight",
            "@DAILY",
            "0 0 30,1 2 *",
            "0 0 */30 2 *",
        ] {
            assert_eq!(fault(sound), None, "{sound}");
        }
    }

    #[test]
    fn others_are_told_why() {
        for (wrong, expected) in [
            ("", "found 0"),
            ("0 3 * *", "found 4"),
            ("0 0 3 * * *", "found 6"),
            ("60 * * * *", "`60`, minute, is not from 0 to 59"),
            ("* 24 * * *", "`24`, hour, is not from 0 to 23"),
            ("* * 0 * *", "day of the month, is not from 1 to 31"),
            ("* * * foo *", "`foo`, month"),
            ("* * * * 8", "`8`, day of the week, is not from 0 to 7"),
            ("*/0 * * * *", "the step of `*/0`, minute, is not from 1 to 59"),
            ("0-10/11 * * * *", "the step of `0-10/11`, minute, is not from 1 to 10"),
            ("* * * * */7", "the step of `*/7`, day of the week, is not from 1 to 6"),
            ("22-6 * * * *", "`22-6`, minute, runs backwards"),
            ("5/10 * * * *", "write `5-59/10`"),
            ("1,,2 * * * *", "``, minute"),
            ("+1 * * * *", "`+1`, minute"),
            ("0 0 31 4,jun *", "there is no day 31 in that month"),
            ("@dayly", "`@dayly` is not known; expected `@hourly`, `@daily`, "),
            ("0 0 30,31 feb *", "there is no day 30"),
            ("0 0 31 2 */2", "there is no day 31"),
            ("@reboot", "a task without `schedule`"),
        ] {
            let found = fault(wrong).unwrap_or_default();
            assert!(found.contains(expected), "{wrong}: {found}");
        }
    }
}
