//! Moments and spans as text.

use super::UnixMs;
use crate::state::Ms;
use crate::time::date::{date_of, days_of};

const DAY: i64 = 86_400_000;

/// `2026-11-21T10:12:03.120Z` (RFC 3339, UTC).
pub fn rfc3339(at: UnixMs) -> String {
    let (year, month, day) = date_of(at.div_euclid(DAY));
    let ms = at.rem_euclid(DAY);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

/// `2026-11-30T03:00:00+01:00`: a time in seconds since 1970, at so many seconds east of UTC; there with a `Z`.
pub fn local(at: i64, offset: i32) -> String {
    let clock = rfc3339(at.saturating_add(offset.into()).saturating_mul(1000));
    let (clock, _) = clock.split_at(clock.len() - ".000Z".len());
    let (sign, minutes) = (if offset < 0 { '-' } else { '+' }, offset.unsigned_abs() / 60);
    if offset == 0 {
        format!("{clock}Z")
    } else {
        format!("{clock}{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

/// Reads what [`rfc3339`] wrote, and nothing else.
pub fn from_rfc3339(text: &str) -> Option<UnixMs> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) =
        (number(0..4)?, u32::try_from(number(5..7)?).ok()?, u32::try_from(number(8..10)?).ok()?);
    let (hour, minute, second, ms) = (number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?);
    if !(1..=12).contains(&month) {
        return None;
    }
    Some(days_of(year, month, day) * DAY + ((hour * 60 + minute) * 60 + second) * 1000 + ms)
}

/// `80 ms`, `1.2 s`, `34 s`, `5 min`, `2 h 5 min`, `3 d 4 h`.
pub fn span(time: Ms) -> String {
    let (seconds, minutes, hours, days) = (time / 1000, time / 60_000, time / 3_600_000, time / 86_400_000);
    match time {
        0..1000 => format!("{time} ms"),
        1000..10_000 => format!("{seconds}.{} s", time / 100 % 10),
        10_000..120_000 => format!("{seconds} s"),
        120_000..3_600_000 => format!("{minutes} min"),
        3_600_000..172_800_000 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Reads `500ms`, `30s`, `5m`, `12h`, `30d`; a number alone is seconds.
pub fn parse_span(text: &str) -> Option<Ms> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<Ms>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_what_date_says() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_255_923_120), "2026-11-21T10:12:03.120Z");
        for at in (-5_000_000_000_000..5_000_000_000_000).step_by(7_777_777_777) {
            assert_eq!(from_rfc3339(&rfc3339(at)), Some(at));
        }
        for wrong in ["", "2026", "2026-13-01T00:00:00.000Z", "äääääääääääääääääääääää"]
        {
            assert_eq!(from_rfc3339(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_clock_says_how_far_it_is_from_utc() {
        let at = 1_796_004_000;
        let clocks = [0, 3600, -12_600].map(|offset| local(at, offset));
        let expected = ["2026-11-30T02:00:00Z", "2026-11-30T03:00:00+01:00", "2026-11-29T22:30:00-03:30"];
        assert_eq!(clocks, expected);
    }

    #[test]
    fn spans_are_read_and_written() {
        let written = [80, 1_234, 34_567, 300_000, 7_500_000, 273_600_000].map(span);
        assert_eq!(written, ["80 ms", "1.2 s", "34 s", "5 min", "2 h 5 min", "3 d 4 h"]);
        let read = ["500ms", "30", "30s", "5m", "1h", "2d"].map(parse_span);
        assert_eq!(read, [500, 30_000, 30_000, 300_000, 3_600_000, 172_800_000].map(Some));
        for wrong in ["", "s", "5x", "-1", "99999999999999999999", "18446744073709551615d"] {
            assert_eq!(parse_span(wrong), None, "{wrong}");
        }
    }
}
