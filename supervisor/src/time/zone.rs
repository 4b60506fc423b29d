//! Time zones: which offset from UTC is in force when.
//!
//! Read from TZif files and POSIX `TZ` texts (RFC 9636; tzset(3)). After the last transition of a file its footer
//! holds, so that the year 2400 has its summer time too. A file is not trusted: every length is bounded by the bytes
//! that are there.

use kitbag_format::sort;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::time::date::{date_of, days_of, weekday_of};

/// A longer file is refused; those of the host are smaller than a hundredth of it.
const LONGEST: u64 = 256 * 1024;
/// The host's folder, where the bundle has none.
pub const HOST_FOLDER: &str = "/usr/share/zoneinfo";
/// The host's own zone: a TZif file (localtime(5)).
const HOST_ZONE: &str = "/etc/localtime";
const DAY: i64 = 86_400;
/// Rules hold so many seconds from 1970 on either side, 31,700 years; before and after there is no summer.
const FAR: i64 = 1_000_000_000_000;

const fn is_leap(year: i64) -> bool {
    year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
}

/// A time in which one offset is in force: from `start` to before `end`, in seconds of the Unix epoch. The one before or
/// after can have the same offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// `i64::MIN`: always was.
    pub start: i64,
    /// `i64::MAX`: for ever.
    pub end: i64,
    /// Seconds east of UTC.
    pub offset: i32,
}

/// A time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Seconds east of UTC before the first transition.
    first: i32,
    /// Rising instants, and the offset from then on.
    transitions: Vec<(i64, i32)>,
    /// What holds after the last transition; `None`: its offset.
    rule: Option<Rule>,
}

/// Why there is no such zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ZoneError {
    /// The text is no name, such as `Europe/Berlin`.
    Name(String),
    /// None of the folders has a file of this name.
    Unknown(String, Vec<PathBuf>),
    /// The file cannot be read, and why.
    Unreadable(PathBuf, std::io::ErrorKind),
    /// The file is not what it should be, and what is wrong with it.
    Damaged(PathBuf, TzifError),
}

impl fmt::Display for ZoneError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(
                to,
                "`{}` is no time zone: `UTC`, `local` and names such as `Europe/Berlin` are",
                name.escape_debug()
            ),
            Self::Unknown(name, folders) => {
                write!(to, "there is no time zone `{name}` in")?;
                for (index, folder) in folders.iter().enumerate() {
                    write!(to, "{} {}", if index == 0 { "" } else { " or" }, folder.display())?;
                }
                if folders.is_empty() { to.write_str(" the bundle") } else { Ok(()) }
            }
            Self::Unreadable(path, kind) => {
                write!(to, "cannot read the time zone {}: {kind}", path.display())
            }
            Self::Damaged(path, error) => write!(to, "the time zone {} {error}", path.display()),
        }
    }
}

impl std::error::Error for ZoneError {}

/// What is wrong with the bytes of a TZif file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TzifError {
    /// It does not begin with `TZif`.
    Magic,
    /// It ends too early, or is too long.
    Length,
    /// It counts leap seconds, as those in a folder `right` do; the system's clock does not.
    LeapSeconds,
    /// A transition is not after the one before, or leads to a type that is not there.
    Transitions,
    /// An offset is more than a day.
    Offset,
    /// The footer is no `TZ` text.
    Footer,
}

impl fmt::Display for TzifError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Magic => "is not a TZif file",
            Self::Length => "is cut off, or too long",
            Self::LeapSeconds => "counts leap seconds, which the system's clock does not",
            Self::Transitions => "has transitions that are not in order",
            Self::Offset => "has an offset of more than a day",
            Self::Footer => "has a footer that cannot be read",
        })
    }
}

impl std::error::Error for TzifError {}

impl Zone {
    /// Coordinated universal time.
    pub const fn utc() -> Self {
        Self { first: 0, transitions: Vec::new(), rule: None }
    }

    /// The zone of this name: `UTC`, `local` ([`Self::local`] with `tz`, the value of the variable `TZ`), or the first
    /// file of this name in the folders, `Europe/Berlin` for one. Reads files, so it belongs to the start.
    ///
    /// # Errors
    /// [`ZoneError`].
    pub fn load(name: &str, tz: Option<&str>, folders: &[PathBuf]) -> Result<Self, ZoneError> {
        match name {
            "UTC" => return Ok(Self::utc()),
            "local" => return Self::local(tz, folders),
            _ if !is_name(name) => return Err(ZoneError::Name(name.to_owned())),
            _ => {}
        }
        for folder in folders {
            match Self::read(&folder.join(name)) {
                Err(ZoneError::Unreadable(_, kind)) if is_missing(kind) => {}
                found => return found,
            }
        }
        Err(ZoneError::Unknown(name.to_owned(), folders.to_vec()))
    }

    /// The host's zone (tzset(3)): what `TZ` says if it is set, a name, a path, or a POSIX text, each after a colon or not;
    /// otherwise `/etc/localtime`. Where `TZ` is empty, or there is no such file, it is UTC.
    ///
    /// # Errors
    /// [`ZoneError`].
    pub fn local(tz: Option<&str>, folders: &[PathBuf]) -> Result<Self, ZoneError> {
        let Some(tz) = tz else {
            return match Self::read(Path::new(HOST_ZONE)) {
                Err(ZoneError::Unreadable(_, kind)) if is_missing(kind) => Ok(Self::utc()),
                found => found,
            };
        };
        let name = tz.strip_prefix(':').unwrap_or(tz);
        match name {
            "" => Ok(Self::utc()),
            // It would ask for itself.
            "local" => Err(ZoneError::Name(name.to_owned())),
            _ if name.starts_with('/') => Self::read(Path::new(name)),
            _ => Self::load(name, None, folders).or_else(|error| Self::from_posix(name).ok_or(error)),
        }
    }

    /// A zone by its rules, `CET-1CEST,M3.5.0,M10.5.0/3` (tzset(3)). Without dates, those of the United States hold,
    /// as glibc has it.
    pub fn from_posix(text: &str) -> Option<Self> {
        let rule = Rule::parse(text)?;
        Some(Self { first: rule.standard, transitions: Vec::new(), rule: Some(rule) })
    }

    fn read(path: &Path) -> Result<Self, ZoneError> {
        let unreadable = |error: std::io::Error| ZoneError::Unreadable(path.to_owned(), error.kind());
        // A FIFO of this name would keep us waiting.
        let file =
            File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::from_tzif(&bytes).map_err(|error| ZoneError::Damaged(path.to_owned(), error))
    }

    /// A zone from the bytes of a TZif file of any version.
    ///
    /// # Errors
    /// [`TzifError`].
    pub fn from_tzif(bytes: &[u8]) -> Result<Self, TzifError> {
        if bytes.len() as u64 > LONGEST {
            return Err(TzifError::Length);
        }
        let mut rest = Bytes(bytes);
        let header = Header::read(&mut rest)?;
        if header.version == 0 {
            return header.block(&mut rest, 4);
        }
        // A block for readers of version 1 comes first, then all again with 64 bits, then the footer.
        rest.take(header.length(4)?)?;
        let mut zone = Header::read(&mut rest)?.block(&mut rest, 8)?;
        zone.rule = footer(rest.0)?;
        Ok(zone)
    }

    /// The period that this instant, in seconds of the Unix epoch, is in.
    pub fn period_at(&self, unix_seconds: i64) -> Period {
        let next = self.transitions.partition_point(|(at, _)| *at <= unix_seconds);
        let (start, offset) = match next.checked_sub(1).and_then(|last| self.transitions.get(last)) {
            Some(&(at, offset)) => (at, offset),
            None => (i64::MIN, self.first),
        };
        match (self.transitions.get(next), &self.rule) {
            (Some(&(end, _)), _) => Period { start, end, offset },
            (None, None) => Period { start, end: i64::MAX, offset },
            (None, Some(rule)) => {
                let period = rule.period_at(unix_seconds);
                Period { start: period.start.max(start), ..period }
            }
        }
    }
}

fn is_missing(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind;
    // EISDIR: `America` is a folder of zones.
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory)
}

/// Names of tzdata: no path leads out of the folder.
fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+');
    name.split('/').all(|part| !part.is_empty() && part.bytes().all(is_letter))
}

/// What is left of a file.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], TzifError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TzifError::Length)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// A big-endian number of 4 or 8 bytes with a sign.
fn signed(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|byte| *byte >= 0x80);
    bytes.iter().fold(if negative { -1 } else { 0 }, |number, byte| number << 8 | i64::from(*byte))
}

/// The header of a block (RFC 9636, section 3.1).
struct Header {
    version: u8,
    ut_or_local: usize,
    standard_or_wall: usize,
    leap_seconds: usize,
    transitions: usize,
    types: usize,
    letters: usize,
}

impl Header {
    fn read(from: &mut Bytes<'_>) -> Result<Self, TzifError> {
        if from.take(4)? != b"TZif" {
            return Err(TzifError::Magic);
        }
        let version = from.take(16)?[0];
        let mut count = || {
            let bytes = from.take(4)?;
            // No sign: at most 4 GiB, and more than there is, is found out when it is taken.
            Ok(bytes.iter().fold(0_usize, |number, byte| number << 8 | usize::from(*byte)))
        };
        Ok(Self {
            version,
            ut_or_local: count()?,
            standard_or_wall: count()?,
            leap_seconds: count()?,
            transitions: count()?,
            types: count()?,
            letters: count()?,
        })
    }

    /// Bytes of the block behind the header, with times of `size` bytes.
    fn length(&self, size: usize) -> Result<usize, TzifError> {
        let parts = [
            (self.transitions, size + 1),
            (self.types, 6),
            (self.letters, 1),
            (self.leap_seconds, size + 4),
            (self.standard_or_wall, 1),
            (self.ut_or_local, 1),
        ];
        parts
            .iter()
            .try_fold(0_usize, |sum, (count, size)| sum.checked_add(count.checked_mul(*size)?))
            .ok_or(TzifError::Length)
    }

    /// The block behind the header (RFC 9636, section 3.2).
    fn block(&self, from: &mut Bytes<'_>, size: usize) -> Result<Zone, TzifError> {
        let mut block = Bytes(from.take(self.length(size)?)?);
        if self.leap_seconds > 0 {
            return Err(TzifError::LeapSeconds);
        }
        let times = block.take(self.transitions * size)?.chunks_exact(size).map(signed);
        let indices = block.take(self.transitions)?;
        let offsets: Vec<i32> = block
            .take(self.types * 6)?
            .chunks_exact(6)
            .map(|kind| offset(&kind[..4]))
            .collect::<Result<_, _>>()?;
        let mut transitions: Vec<(i64, i32)> = Vec::with_capacity(self.transitions);
        for (at, index) in times.zip(indices) {
            let offset = offsets.get(usize::from(*index)).ok_or(TzifError::Transitions)?;
            if transitions.last().is_some_and(|(last, _)| *last >= at) {
                return Err(TzifError::Transitions);
            }
            transitions.push((at, *offset));
        }
        let first = *offsets.first().ok_or(TzifError::Length)?;
        Ok(Zone { first, transitions, rule: None })
    }
}

fn offset(bytes: &[u8]) -> Result<i32, TzifError> {
    // RFC 9636, section 3.2: more than -25 and less than 26 hours.
    i32::try_from(signed(bytes))
        .ok()
        .filter(|seconds| (-89_999..=93_599).contains(seconds))
        .ok_or(TzifError::Offset)
}

/// The text between two newlines at the end (RFC 9636, section 3.3); an empty one says nothing.
fn footer(bytes: &[u8]) -> Result<Option<Rule>, TzifError> {
    let text =
        bytes.strip_prefix(b"\n").and_then(|rest| rest.strip_suffix(b"\n")).ok_or(TzifError::Footer)?;
    if text.is_empty() {
        return Ok(None);
    }
    str::from_utf8(text).ok().and_then(Rule::parse).map(Some).ok_or(TzifError::Footer)
}

/// A POSIX `TZ` text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// Seconds east of UTC in standard time.
    standard: i32,
    summer: Option<Summer>,
}

/// Summer time; in Ireland's rule it is the winter that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Summer {
    /// Seconds east of UTC.
    offset: i32,
    /// In standard time.
    begins: Change,
    /// In summer time.
    ends: Change,
}

/// A moment of each year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    day: Day,
    /// Seconds after its midnight, -167 to 167 hours.
    time: i32,
}

/// A day of each year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Day {
    /// `J60`: 1 to 365, February 29 is never counted.
    Counted(u32),
    /// `59`: 0 to 365, February 29 is counted.
    Ordinal(u32),
    /// `M3.5.0`: the first to fourth, or for 5 the last, such day of the week in a month.
    Weekday { month: u32, week: u32, day: u32 },
}

impl Change {
    /// When it comes in this year, in seconds of a local clock.
    fn in_year(self, year: i64) -> i64 {
        let first = days_of(year, 1, 1);
        let day = match self.day {
            Day::Counted(day) => first + i64::from(day) - 1 + i64::from(is_leap(year) && day >= 60),
            Day::Ordinal(day) => first + i64::from(day),
            Day::Weekday { month, week, day } => {
                let first = days_of(year, month, 1);
                let next = if month == 12 { days_of(year + 1, 1, 1) } else { days_of(year, month + 1, 1) };
                let days_until = (day + 7 - weekday_of(first)) % 7;
                let found = first + i64::from(days_until + 7 * (week - 1));
                if found < next { found } else { found - 7 }
            }
        };
        day * DAY + i64::from(self.time)
    }
}

impl Rule {
    fn period_at(&self, at: i64) -> Period {
        let Some(summer) = &self.summer else {
            return Period { start: i64::MIN, end: i64::MAX, offset: self.standard };
        };
        if at < -FAR {
            return Period { start: i64::MIN, end: -FAR, offset: self.standard };
        }
        if at >= FAR {
            return Period { start: FAR, end: i64::MAX, offset: self.standard };
        }
        let (year, ..) = date_of(at.div_euclid(DAY));
        let mut changes = Vec::with_capacity(10);
        for year in year - 2..=year + 2 {
            changes.push((summer.begins.in_year(year) - i64::from(self.standard), true));
            changes.push((summer.ends.in_year(year) - i64::from(summer.offset), false));
        }
        // One that ends as the next begins never ends: summer time all year (RFC 9636, section 3.3.1).
        sort::sort(&mut changes);
        let next = changes.partition_point(|(change, _)| *change <= at);
        let last = next.checked_sub(1).and_then(|last| changes.get(last)).copied();
        let (start, is_summer) = last.unwrap_or((-FAR, false));
        let end = changes.get(next).map_or(FAR, |(change, _)| *change);
        Period {
            start: start.max(-FAR),
            end: end.min(FAR),
            offset: if is_summer { summer.offset } else { self.standard },
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut rest = Text(text.as_bytes());
        rest.name()?;
        let standard = -rest.time(24)?;
        if rest.0.is_empty() {
            return Some(Self { standard, summer: None });
        }
        rest.name()?;
        let offset = match rest.0.first() {
            None | Some(b',') => standard + 3600,
            Some(_) => -rest.time(24)?,
        };
        if rest.0.is_empty() {
            rest.0 = b",M3.2.0,M11.1.0";
        }
        let summer = Summer { offset, begins: rest.change()?, ends: rest.change()? };
        rest.0.is_empty().then_some(Self { standard, summer: Some(summer) })
    }
}

/// What is left of a `TZ` text.
struct Text<'a>(&'a [u8]);

impl Text<'_> {
    fn skip(&mut self, byte: u8) -> bool {
        let rest = self.0.strip_prefix(&[byte]);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// At least three letters, or anything that is not `>` in angle brackets.
    fn name(&mut self) -> Option<()> {
        let quoted = self.skip(b'<');
        let ends = |byte: &u8| if quoted { *byte == b'>' } else { !byte.is_ascii_alphabetic() };
        let length = self.0.iter().position(ends).unwrap_or(self.0.len());
        self.0 = &self.0[length..];
        (length >= 3 && (!quoted || self.skip(b'>'))).then_some(())
    }

    /// A number of at most three digits, from `least` to `most`.
    fn number(&mut self, least: u32, most: u32) -> Option<u32> {
        let length = self.0.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at(length);
        self.0 = rest;
        let number: u32 = (1..=3).contains(&length).then(|| str::from_utf8(digits).ok()?.parse().ok())??;
        (least..=most).contains(&number).then_some(number)
    }

    /// `[+-]hours[:minutes[:seconds]]`, in seconds.
    fn time(&mut self, most_hours: u32) -> Option<i32> {
        let negative = self.skip(b'-');
        if !negative {
            self.skip(b'+');
        }
        let hours = self.number(0, most_hours)?;
        let minutes = if self.skip(b':') { self.number(0, 59)? } else { 0 };
        let seconds = if self.skip(b':') { self.number(0, 59)? } else { 0 };
        let sum = (hours * 3600 + minutes * 60 + seconds).cast_signed();
        Some(if negative { -sum } else { sum })
    }

    /// `,date[/time]`
    fn change(&mut self) -> Option<Change> {
        let day = match (self.skip(b','), self.0.first()?) {
            (false, _) => return None,
            (true, b'J') => {
                self.skip(b'J');
                Day::Counted(self.number(1, 365)?)
            }
            (true, b'M') => {
                self.skip(b'M');
                let month = self.number(1, 12)?;
                let week = self.skip(b'.').then(|| self.number(1, 5))??;
                let day = self.skip(b'.').then(|| self.number(0, 6))??;
                Day::Weekday { month, week, day }
            }
            (true, _) => Day::Ordinal(self.number(0, 365)?),
        };
        let time = if self.skip(b'/') { self.time(167)? } else { 2 * 3600 };
        Some(Change { day, time })
    }
}
