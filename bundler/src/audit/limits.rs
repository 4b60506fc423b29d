//! What a bundle may ask of a host.

use std::fmt;
use std::str::FromStr;

/// A version of the kernel or of glibc: up to three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u32; 3]);

impl Version {
    /// The version that a name such as `GLIBC_2.34` stands for; `GLIBC_ABI_DT_RELR` came with 2.36. None for others,
    /// `GLIBC_PRIVATE` among them.
    pub fn of_glibc(name: &[u8]) -> Option<Self> {
        match name.strip_prefix(b"GLIBC_")? {
            b"ABI_DT_RELR" => Some(Self([2, 36, 0])),
            number => str::from_utf8(number).ok()?.parse().ok(),
        }
    }
}

impl FromStr for Version {
    type Err = String;

    /// `4.18`, `6.1.0`, and what `uname -r` prints: `4.18.0-553.el8`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no version such as `4.18`");
        let mut numbers = [0; 3];
        let parts: Vec<&str> = text.split('-').next().unwrap_or(text).split('.').collect();
        if !(2..=3).contains(&parts.len()) {
            return Err(wrong());
        }
        for (number, part) in numbers.iter_mut().zip(parts) {
            *number = part.parse().map_err(|_| wrong())?;
        }
        Ok(Self(numbers))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}")?;
        if patch > 0 { write!(f, ".{patch}") } else { Ok(()) }
    }
}

/// A level of x86-64, 1 to 4 (x86-64 psABI, "Micro-architecture levels").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(pub u32);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "x86-64" | "x86-64-v1" => Ok(Self(1)),
            "x86-64-v2" => Ok(Self(2)),
            "x86-64-v3" => Ok(Self(3)),
            "x86-64-v4" => Ok(Self(4)),
            _ => Err(format!("`{text}` is none of x86-64, x86-64-v2, x86-64-v3, x86-64-v4")),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x86-64-v{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("4.18") < version("5.4") && version("2.9") < version("2.31"));
        assert_eq!(version("4.18.0-553.el8"), version("4.18"));
        assert_eq!(version("6.1.55").to_string(), "6.1.55");
        for wrong in ["", "4", "4.", "a.b", "1.2.3.4", "99999999999.1", "-1.2"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_numbered_versions_of_glibc_count() {
        assert_eq!(Version::of_glibc(b"GLIBC_2.2.5"), Some(Version([2, 2, 5])));
        assert_eq!(Version::of_glibc(b"GLIBC_ABI_DT_RELR"), Some(Version([2, 36, 0])));
        assert_eq!(Version::of_glibc(b"GLIBC_PRIVATE"), None);
        assert_eq!(Version::of_glibc(b"GLIBCXX_3.4"), None);
    }

    #[test]
    fn levels_have_names() {
        assert_eq!("x86-64".parse(), Ok(Level(1)));
        assert_eq!("x86-64-v3".parse::<Level>().unwrap().to_string(), "x86-64-v3");
        assert!("v3".parse::<Level>().is_err());
    }
}
