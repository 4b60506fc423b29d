//! Times and sizes, as a manifest writes them.

use std::ops::RangeInclusive;

use super::{DAY_MS, Reader, Section, whole};

impl Reader<'_> {
    /// Milliseconds of a time such as `10s`.
    pub(super) fn duration(
        &mut self,
        section: &Section<'_>,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let text = self.string_as(section, key, "a time with its unit, in quotes")?;
        let fault = match humantime::parse_duration(text.get_ref())
            .map(|time| u64::try_from(time.as_millis()))
        {
            Ok(Ok(time)) if range.contains(&time) => return Some(time),
            Ok(Ok(time)) if time < *range.start() => format!("expected {} or more", shown_ms(*range.start())),
            Ok(_) => format!("expected {} at most", shown_ms(*range.end())),
            Err(_) => "expected a number with a unit, such as `500ms`, `10s` or `1m 30s`".to_owned(),
        };
        self.check(&text, Some(fault), "bad duration");
        None
    }

    /// Bytes: a number, or one with `K`, `M`, `G` or `T`, which are powers of 1024.
    pub(super) fn size(
        &mut self,
        section: &Section<'_>,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let value = section.get(key)?;
        let number = whole(value.get_ref()).and_then(|number| u64::try_from(number).ok());
        let size = number.or_else(|| value.get_ref().as_str().and_then(parse_size));
        if size.is_none_or(|size| !range.contains(&size)) {
            let (least, most) = (shown_size(*range.start()), shown_size(*range.end()));
            self.wrong_type(section, key, value, &format!("a size from \"{least}\" to \"{most}\""));
            return None;
        }
        size
    }
}

/// `512M` as bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[number.len()..].to_ascii_uppercase().trim_end_matches("IB") {
        "" if number.len() == text.len() => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    number.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Bytes in the largest unit that leaves no rest.
pub(super) fn shown_size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let unit = units.into_iter().find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// Milliseconds in the largest unit that leaves no rest.
pub(super) fn shown_ms(ms: u64) -> String {
    let units = [(DAY_MS, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let unit = units.into_iter().find(|(length, _)| ms >= *length && ms.is_multiple_of(*length));
    unit.map_or_else(|| format!("{ms}ms"), |(length, unit)| format!("{}{unit}", ms / length))
}
