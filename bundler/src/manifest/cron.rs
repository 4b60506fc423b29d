//! Whether a crontab(5) expression is one. The supervisor computes the times, by the same rules (its `cron.rs`); here
//! mistakes show while packing, and expressions that are never due.

use crate::diagnostic::near_miss;

/// What a field is called, its smallest and largest number, and names for numbers.
struct Field {
    what: &'static str,
    range: (u32, u32),
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { what: "minute", range: (0, 59), names: &[] },
    Field { what: "hour", range: (0, 23), names: &[] },
    Field { what: "day of the month", range: (1, 31), names: &[] },
    Field {
        what: "month",
        range: (1, 12),
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    // Sunday is 0, and 7.
    Field {
        what: "day of the week",
        range: (0, 7),
        names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

const NICKNAMES: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// What is wrong with `expression`, if anything.
pub fn fault(expression: &str) -> Option<String> {
    let expression = expression.trim();
    if expression == "@reboot" {
        return Some("a task without `schedule` runs when the bundle starts".to_owned());
    }
    if expression.starts_with('@') {
        return nickname_fault(expression);
    }
    let fields: Vec<&str> = expression.split_ascii_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let found = fields.len();
        return Some(format!(
            "expected five fields: minute, hour, day of the month, month, day of the week; found {found}"
        ));
    }
    let faults = FIELDS.iter().zip(&fields).find_map(|(field, text)| field.fault(text));
    faults.or_else(|| never(&fields))
}

fn nickname_fault(expression: &str) -> Option<String> {
    if NICKNAMES.contains(&expression) {
        return None;
    }
    let near = near_miss(expression, NICKNAMES.iter().copied());
    Some(format!("expected `{}` or five fields", near.unwrap_or("@daily")))
}

/// A day that no month has.
fn never(fields: &[&str]) -> Option<String> {
    let (day, month) = (fields[2].parse::<u32>().ok()?, fields[3]);
    let numbers = month.split(',').map(|month| FIELDS[3].number(month));
    let longest = numbers.collect::<Option<Vec<u32>>>()?.into_iter().map(|month| match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    });
    (day > longest.max()? && fields[4] == "*").then(|| format!("there is no day {day} in that month"))
}

impl Field {
    /// What is wrong with the field: a list of `*`, numbers and ranges, each with a step or not.
    fn fault(&self, text: &str) -> Option<String> {
        text.split(',').find_map(|part| self.part_fault(part))
    }

    fn part_fault(&self, part: &str) -> Option<String> {
        let (what, (smallest, largest)) = (self.what, self.range);
        let (span, step) = match part.split_once('/') {
            Some((span, step)) => (span, Some(step)),
            None => (part, None),
        };
        let Some((first, last)) = self.span(span) else {
            return Some(format!("`{part}`, {what}, is not from {smallest} to {largest}"));
        };
        if first > last {
            return Some(format!("`{span}`, {what}, runs backwards: write it as two, with a comma"));
        }
        let step = step?;
        if span != "*" && !span.contains('-') {
            return Some(format!(
                "`{part}`, {what}: a step follows `*` or a range, write `{span}-{largest}/{step}`"
            ));
        }
        let longest = last - first;
        let sound = digits(step).is_some_and(|step| (1..=longest).contains(&step));
        (!sound).then(|| format!("the step of `{part}`, {what}, is not from 1 to {longest}"))
    }

    /// First and last number of `*`, a number, or two with a dash.
    fn span(&self, span: &str) -> Option<(u32, u32)> {
        let is_week = self.range.1 == 7;
        if span == "*" {
            // Seven is Sunday for a second time.
            return Some((self.range.0, if is_week { 6 } else { self.range.1 }));
        }
        let (first, last) = span.split_once('-').unwrap_or((span, span));
        let (first, last) = (self.number(first)?, self.number(last)?);
        // `fri-sun`
        let ends_on_sunday = is_week && last == 0 && first > 0;
        Some((first, if ends_on_sunday { 7 } else { last }))
    }

    /// The number that `text` is, or is the name of.
    fn number(&self, text: &str) -> Option<u32> {
        let name = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let named = name.and_then(|at| u32::try_from(at).ok()).map(|at| at + self.range.0);
        named.or_else(|| digits(text).filter(|number| (self.range.0..=self.range.1).contains(number)))
    }
}

/// A number of digits alone.
fn digits(text: &str) -> Option<u32> {
    let plain = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::fault;

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
            ("@dayly", "expected `@daily`"),
            ("@reboot", "a task without `schedule`"),
        ] {
            let found = fault(wrong).unwrap_or_default();
            assert!(found.contains(expected), "{wrong}: {found}");
        }
    }
}
