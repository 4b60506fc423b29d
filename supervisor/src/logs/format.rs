//! How a line is written: with a time stamp, alone, or as a JSON object.
//!
//! Stamped: `2026-11-21T10:32:15.123456Z | text`. The mark is `|` for standard output, `!` for standard error, and
//! has a `+` behind it where the line goes on with the stream's one before.

use std::time::{SystemTime, UNIX_EPOCH};

pub use kitbag_format::service::LogFormat;

use super::lines::{Batch, Stream};
use crate::time::date::{date_of, days_of};

/// Microseconds since 1970-01-01 in UTC, without leap seconds.
pub type Micros = i64;

/// The wall clock, for people. It may jump.
pub fn wall_clock() -> Micros {
    let micros = |span: std::time::Duration| Micros::try_from(span.as_micros()).unwrap_or(Micros::MAX);
    SystemTime::now().duration_since(UNIX_EPOCH).map_or_else(|before| -micros(before.duration()), micros)
}

/// Bytes of a time stamp.
pub const STAMP: usize = "2026-11-21T10:32:15.123456Z".len();
const MICROS_A_SECOND: Micros = 1_000_000;

/// Writes times in RFC 3339, in UTC with microseconds; what the second before has in common is kept.
#[derive(Debug)]
pub struct Stamp {
    second: Option<i64>,
    text: [u8; STAMP],
}

impl Default for Stamp {
    fn default() -> Self {
        Self { second: None, text: *b"0000-00-00T00:00:00.000000Z" }
    }
}

impl Stamp {
    /// The text of a time. Years outside of 0 to 9999 are written as the nearest of these.
    pub fn text(&mut self, time: Micros) -> &[u8; STAMP] {
        let second = time.div_euclid(MICROS_A_SECOND);
        if self.second != Some(second) {
            self.second = Some(second);
            self.write_second(second);
        }
        self.digits(20, 6, time.rem_euclid(MICROS_A_SECOND));
        &self.text
    }

    fn write_second(&mut self, second: i64) {
        let (day, rest) = (second.div_euclid(86_400), second.rem_euclid(86_400));
        let (year, month, date) = date_of(day);
        self.digits(0, 4, year.clamp(0, 9999));
        for (at, value) in
            [(5, month.into()), (8, date.into()), (11, rest / 3600), (14, rest / 60 % 60), (17, rest % 60)]
        {
            self.digits(at, 2, value);
        }
    }

    fn digits(&mut self, at: usize, count: usize, mut value: i64) {
        for digit in self.text[at..at + count].iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
}

/// The time that a stamp says; `None` if it is none. Any byte may stand between the numbers.
pub fn parse_stamp(text: &[u8]) -> Option<Micros> {
    let text = text.get(..STAMP)?;
    let number = |at: usize, count: usize| {
        text[at..at + count].iter().try_fold(0_i64, |value, digit| {
            digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0'))
        })
    };
    let small = |at| u32::try_from(number(at, 2)?).ok();
    let day = days_of(number(0, 4)?, small(5)?, small(8)?);
    let second = ((day * 24 + number(11, 2)?) * 60 + number(14, 2)?) * 60 + number(17, 2)?;
    (text[STAMP - 1] == b'Z').then_some(second * MICROS_A_SECOND + number(20, 6)?)
}

/// What stands between a stamp and the line.
const fn mark(stream: Stream, continued: bool) -> &'static [u8] {
    match (stream, continued) {
        (Stream::Out, false) => b" | ",
        (Stream::Out, true) => b" |+ ",
        (Stream::Err, false) => b" ! ",
        (Stream::Err, true) => b" !+ ",
    }
}

/// Appends a line with its time stamp and mark.
pub fn stamped(out: &mut Vec<u8>, stamp: &[u8; STAMP], stream: Stream, line: &[u8], continued: bool) {
    out.extend_from_slice(stamp);
    out.extend_from_slice(mark(stream, continued));
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// Appends a line as an object on a line: `time`, `service`, `stream`, `text`; `"continued":true` where it goes on
/// with the one before, `"invalid":true` where bytes that are no UTF-8 were replaced by U+FFFD.
pub fn json(
    out: &mut Vec<u8>,
    stamp: &[u8; STAMP],
    name: &str,
    batch: &Batch<'_>,
    line: &[u8],
    continued: bool,
) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(stamp);
    out.extend_from_slice(b"\",\"service\":\"");
    escape(out, name);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(batch.stream.name().as_bytes());
    out.extend_from_slice(b"\",\"text\":\"");
    let mut invalid = false;
    for chunk in line.utf8_chunks() {
        escape(out, chunk.valid());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
            invalid = true;
        }
    }
    out.push(b'"');
    for (name, is_set) in [(&b",\"continued\":true"[..], continued), (b",\"invalid\":true", invalid)] {
        if is_set {
            out.extend_from_slice(name);
        }
    }
    out.extend_from_slice(b"}\n");
}

/// Appends a line as a terminal may have it: with tabs and colours (SGR: ECMA-48, 8.3.117), which end with it. Other
/// control characters are written out: `^[` for ESC, as cat(1) does; `\x9b` for what is no UTF-8 or is one of C1, which
/// terminals of eight bits obey. A carriage return at the end is left out.
pub fn visible(out: &mut Vec<u8>, line: &[u8]) {
    let mut rest = line.strip_suffix(b"\r").unwrap_or(line);
    let mut coloured = false;
    while let Some(at) = rest.iter().position(|byte| is_unsafe(*byte)) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let taken = colour(rest).or_else(|| letter(rest));
        coloured |= taken.is_some() && rest[0] == 0x1b;
        let length = taken.unwrap_or(1);
        match (taken, rest[0]) {
            (Some(length), _) => out.extend_from_slice(&rest[..length]),
            (None, byte @ 0x80..) => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            (None, byte) => out.extend_from_slice(&[b'^', byte ^ 0x40]),
        }
        rest = &rest[length..];
    }
    out.extend_from_slice(rest);
    if coloured {
        out.extend_from_slice(b"\x1b[0m");
    }
}

const fn is_unsafe(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte >= 0x7f
}

/// The length of a sequence that sets colours, with which `bytes` begins.
fn colour(bytes: &[u8]) -> Option<usize> {
    let parameters = bytes.strip_prefix(b"\x1b[")?;
    let end = parameters.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'))?;
    (parameters[end] == b'm').then_some(end + 3)
}

/// The length of a letter beyond ASCII that is no control character, with which `bytes` begins.
fn letter(bytes: &[u8]) -> Option<usize> {
    let text = bytes[..bytes.len().min(4)].utf8_chunks().next()?.valid();
    text.chars().next().filter(|letter| !letter.is_control()).map(char::len_utf8)
}

/// Appends the inside of a JSON string (RFC 8259, section 7).
fn escape(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut plain = 0;
    for (at, byte) in bytes.iter().copied().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' && byte != 0x7f {
            continue;
        }
        out.extend_from_slice(&bytes[plain..at]);
        plain = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\r' => out.extend_from_slice(b"\\r"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(time: Micros) -> String {
        String::from_utf8(Stamp::default().text(time).to_vec()).expect("ASCII")
    }

    #[test]
    fn times_are_what_date_says() {
        for (second, date) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_795_257_135, "2026-11-21T10:32:15"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (-1, "1969-12-31T23:59:59"),
        ] {
            let time = second * MICROS_A_SECOND + 42;
            assert_eq!(text(time), format!("{date}.000042Z"));
            assert_eq!(parse_stamp(text(time).as_bytes()), Some(time));
        }
    }

    #[test]
    fn a_stamp_that_is_used_again_says_the_same_as_a_new_one() {
        let mut stamp = Stamp::default();
        for time in [0, 999_999, 1_000_000, 59_999_999, 60_000_000, -1, 0, 86_399_999_999, 86_400_000_000] {
            assert_eq!(String::from_utf8_lossy(stamp.text(time)), text(time));
        }
    }

    #[test]
    fn what_is_no_stamp_is_none() {
        for text in ["", "2026-11-21", "2026-11-21T10:32:15.123456 ", "2026-11-21Tx0:32:15.123456Z"] {
            assert_eq!(parse_stamp(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_terminal_gets_colours_and_nothing_else_to_obey() {
        let shown = |line: &[u8]| {
            let mut out = Vec::new();
            visible(&mut out, line);
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(shown(b"plain\ttext\r"), "plain\ttext");
        assert_eq!(shown("\u{1b}[1;38:2:1mäß€😀".as_bytes()), "\u{1b}[1;38:2:1mäß€😀\u{1b}[0m");
        assert_eq!(shown(b"\x1b[2J\x1b]0;title\x07 \x1bc \x1b["), "^[[2J^[]0;title^G ^[c ^[[");
        assert_eq!(shown(b"10%\r20% \x08\x7f\0"), "10%^M20% ^H^?^@");
        assert_eq!(shown(b"\x9b2J \xc2\x9b \xff\xe2\x82"), "\\x9b2J \\xc2\\x9b \\xff\\xe2\\x82");
    }

    #[test]
    fn a_json_line_is_what_a_parser_reads() {
        let line = b"a \"b\" \\ \t \x01\x7f \xc3\xa4 \xff \xe2\x82";
        let batch = Batch { unit: 0, stream: Stream::Err, time: 0, bytes: line, continued: false };
        let mut out = Vec::new();
        json(&mut out, Stamp::default().text(0), "web.2", &batch, line, true);
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000000Z", "service": "web.2", "stream": "stderr",
            "text": "a \"b\" \\ \t \u{1}\u{7f} ä \u{fffd} \u{fffd}", "continued": true, "invalid": true,
        });
        assert_eq!(value, expected);
    }
}
