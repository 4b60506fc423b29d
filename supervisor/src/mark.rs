//! The mark by which a process that has left its session and its parents is known as its unit's.
//!
//! It is a resource limit that Linux keeps for each process and asks about nowhere: `RLIMIT_LOCKS`, which was last enforced
//! by 2.4.24 (getrlimit(2)). It passes on to children, survives execve(2), setsid(2), a cleared environment, closed
//! descriptors and a change of user, and prlimit(2) reads it of another process. Its value is a number far above what
//! anybody would ask for, in which this supervisor and the unit stand. A process can lower it, and then has no mark, or
//! one of an earlier unit's; only root can raise it.
//!
//! ```text
//! bit 62         a supervisor that nobody has marked       bits 24 to 60   this supervisor: a random number
//! bit 61         one inside another's unit                 bits 0 to 23    the unit
//! ```
//!
//! The inner one leaves the hard limit to the outer one, whose orphans its units may be one day, and takes the soft one.

use serde::{Deserialize, Serialize};

/// A bundle has fewer units.
const UNITS: u64 = 1 << 24;
const OUTER: u64 = 1 << 62;
const INNER: u64 = 1 << 61;

/// A soft and a hard limit, as in getrlimit(2).
pub type Limit = (u64, u64);

/// The marks of one supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    base: u64,
    /// The hard limit, if another supervisor's mark is there.
    outer: Option<u64>,
}

impl Marks {
    /// Marks with this random number, for a supervisor whose own hard limit is `hard`. `None` where somebody has
    /// put the limit to use.
    pub fn new(random: u64, hard: u64) -> Option<Self> {
        let random = random % (1 << 37) * UNITS;
        match hard {
            u64::MAX => Some(Self { base: OUTER + random, outer: None }),
            OUTER.. => Some(Self { base: INNER + random, outer: Some(hard) }),
            _ => None,
        }
    }

    /// The limit that marks a process as this unit's.
    pub fn of(&self, unit: usize) -> Limit {
        let mark = self.base + unit as u64 % UNITS;
        (mark, self.outer.unwrap_or(mark))
    }

    /// Whose unit a process with this limit is.
    pub fn unit(&self, (soft, hard): Limit) -> Option<usize> {
        let mark = if self.outer.is_some() { soft } else { hard };
        let unit = mark.checked_sub(self.base).filter(|unit| *unit < UNITS)?;
        usize::try_from(unit).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_whose_it_is_and_nobody_elses() {
        let outer = Marks::new(7, u64::MAX).expect("no limit");
        let inner = Marks::new(7, outer.of(3).1).expect("a mark");
        for random in [0, 8, u64::MAX] {
            let other = Marks::new(random, u64::MAX).expect("no limit");
            assert_eq!((outer.unit(other.of(0)), other.unit(outer.of(0))), (None, None));
        }
        for unit in [0, 1, 999, (1 << 24) - 1] {
            assert_eq!(outer.unit(outer.of(unit)), Some(unit));
            assert_eq!((inner.unit(inner.of(unit)), outer.unit(inner.of(unit))), (Some(unit), Some(3)));
            assert_eq!(inner.unit(outer.of(unit)), None);
        }
        assert_eq!(outer.unit((u64::MAX, u64::MAX)), None);
    }

    #[test]
    fn every_limit_can_be_set_by_who_is_not_root() {
        let (soft, hard) = Marks::new(u64::MAX, u64::MAX).expect("no limit").of(usize::MAX);
        assert!(soft <= hard && hard < u64::MAX);
        let (inner, same) = Marks::new(u64::MAX, hard).expect("a mark").of(usize::MAX);
        assert!(inner <= same && same == hard);
        assert_eq!(Marks::new(1, 1000), None);
    }
}
