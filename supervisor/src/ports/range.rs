//! Which numbers are tried, and in which order.

use std::fs;

use super::lease::Net;

/// The kernel gives these to sockets that ask for none (ip(7)).
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// What it gives where nobody has set it.
const USUAL_EPHEMERAL: Range = Range { low: 32_768, high: 60_999 };
/// Where the pool begins: below it are the numbers that people choose by hand.
const FIRST: u16 = 20_000;
/// A pool with less room is none.
const LEAST: u16 = 1_000;

/// Numbers from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub low: u16,
    /// The last.
    pub high: u16,
}

impl Range {
    /// True if this number is one of them.
    pub const fn has(self, number: u16) -> bool {
        self.low <= number && number <= self.high
    }

    /// All of them once, beginning at `start`.
    pub fn starting_at(self, start: u16) -> impl Iterator<Item = u16> {
        (start..=self.high).chain(self.low..start)
    }
}

/// The numbers for ports that may have any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// These.
    pub range: Range,
    /// There was room inside the ephemeral range only: a connection that leaves this host may have taken one of them.
    pub inside: bool,
}

/// The numbers that the kernel gives to sockets that ask for none.
pub fn ephemeral() -> Range {
    parse(&fs::read_to_string(EPHEMERAL).unwrap_or_default())
}

/// The pool of this host.
pub fn pool() -> Pool {
    pool_of(&fs::read_to_string(EPHEMERAL).unwrap_or_default())
}

/// The pool beside this ephemeral range, as the kernel writes it, two numbers with a tab between them.
pub fn pool_of(ephemeral: &str) -> Pool {
    let taken = parse(ephemeral);
    let below = Range { low: FIRST, high: taken.low - 1 };
    let above = Range { low: taken.high.saturating_add(1).max(FIRST), high: u16::MAX };
    let has_room = |range: &Range| range.high.checked_sub(range.low).is_some_and(|room| room >= LEAST - 1);
    match [below, above].into_iter().find(has_room) {
        Some(range) => Pool { range, inside: false },
        None => Pool { range: Range { low: taken.low.max(1024).min(taken.high), ..taken }, inside: true },
    }
}

fn parse(ephemeral: &str) -> Range {
    let mut fields = ephemeral.split_ascii_whitespace().map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(low)), Some(Ok(high))) if low > 0 && low <= high => Range { low, high },
        _ => USUAL_EPHEMERAL,
    }
}

/// Where in a range a port begins to look: the same for the same seed, for good. Bundles rarely meet, since their
/// names and folders are in it.
pub fn start(seed: &str, range: Range) -> u16 {
    let hash = blake3::hash(seed.as_bytes());
    let (head, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    let count = u64::from(range.high.saturating_sub(range.low)) + 1;
    let offset = u64::from_le_bytes(*head) % count;
    range.low + u16::try_from(offset).expect("less than a range has")
}

/// Numbers that a round of leases need not try again, so that a range that is nearly full is gone through once and not
/// once for each port. Rounds are short: what was taken in this one may be free in the next.
#[derive(Debug)]
pub struct Round {
    /// A bit a number, of TCP and then of UDP.
    bits: Vec<u64>,
}

impl Default for Round {
    fn default() -> Self {
        Self { bits: vec![0; 2 * Self::WORDS] }
    }
}

impl Round {
    const WORDS: usize = (1 << 16) / 64;

    /// Nobody of this round gets the number because it comes by it: it is another port's, fixed or remembered.
    pub fn skip(&mut self, net: Net, number: u16) {
        let (word, bit) = Self::place(net, number);
        self.bits[word] |= bit;
    }

    /// True if it need not be tried.
    pub fn skips(&self, net: Net, number: u16) -> bool {
        let (word, bit) = Self::place(net, number);
        self.bits[word] & bit != 0
    }

    fn place(net: Net, number: u16) -> (usize, u64) {
        let first = if net == Net::Tcp { 0 } else { Self::WORDS };
        (first + usize::from(number) / 64, 1 << (number % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ephemeral: &str) -> (u16, u16, bool) {
        let pool = pool_of(ephemeral);
        (pool.range.low, pool.range.high, pool.inside)
    }

    #[test]
    fn the_pool_is_beside_the_ephemeral_range() {
        assert_eq!(of("32768\t60999\n"), (20_000, 32_767, false));
        assert_eq!(of("21000 60999"), (20_000, 20_999, false));
        assert_eq!(of("20500 60999"), (61_000, 65_535, false), "too little room below");
        assert_eq!(of("10000 50000"), (50_001, 65_535, false));
        assert_eq!(of("1024 65535"), (1_024, 65_535, true));
        assert_eq!(of("1 65535"), (1_024, 65_535, true));
        assert_eq!(of("1 80"), (20_000, 65_535, false));
        assert_eq!(of("65535 65535"), (20_000, 65_534, false));
    }

    #[test]
    fn what_cannot_be_read_is_taken_as_usual() {
        for text in ["", "a b", "60999 32768", "0 0", "32768", "70000 80000", "-1 5"] {
            assert_eq!(of(text), (20_000, 32_767, false), "{text:?}");
        }
    }

    #[test]
    fn the_start_is_stable_and_in_the_range() {
        let range = Range { low: 20_000, high: 32_767 };
        assert_eq!(start("guestbook\0/var/lib/kitbag/guestbook\0web\0http", range), 30_699);
        for high in [1, 2, 80, u16::MAX] {
            for seed in 0..100 {
                let range = Range { low: 1, high };
                assert!(range.has(start(&seed.to_string(), range)));
            }
        }
        assert_eq!(start("x", Range { low: 7, high: 7 }), 7);
    }

    #[test]
    fn a_range_is_gone_through_once_from_its_start() {
        let range = Range { low: 5, high: 8 };
        assert_eq!(range.starting_at(7).collect::<Vec<_>>(), [7, 8, 5, 6]);
        assert_eq!(range.starting_at(5).collect::<Vec<_>>(), [5, 6, 7, 8]);
        assert_eq!(Range { low: 0, high: u16::MAX }.starting_at(u16::MAX).count(), 1 << 16);
    }

    #[test]
    fn a_round_skips_what_it_was_told_by_protocol() {
        let mut round = Round::default();
        round.skip(Net::Tcp, 80);
        round.skip(Net::Udp, u16::MAX);
        assert!(round.skips(Net::Tcp, 80) && round.skips(Net::Udp, u16::MAX));
        assert!(!round.skips(Net::Udp, 80) && !round.skips(Net::Tcp, u16::MAX) && !round.skips(Net::Tcp, 81));
    }
}
