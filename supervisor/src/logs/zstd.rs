//! A small compressor that writes Zstandard frames (RFC 8878), for rotated logs.
//!
//! libzstd's encoder would add 166 kB to every bundle, its fastest level alone; this adds a few. It looks for matches
//! greedily, and codes sequences with the format's predefined tables. What `zstd -d` reads is right by
//! the tests, which decode with libzstd.

use std::io::{self, Read, Write};

/// Bytes of a block before it is compressed; the format's limit.
const BLOCK: usize = 128 * 1024;
/// How far back a match may be.
const WINDOW: usize = 1 << WINDOW_LOG;
const WINDOW_LOG: u8 = 19;
/// A shorter match costs more than its bytes.
const SHORTEST: usize = 6;
const HASH_LOG: u32 = 15;

/// Reads `from` to its end and writes a frame to `to`. Takes 1.3 MB of memory.
pub fn compress(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut encoder = Encoder::new();
    // Magic number; a descriptor without a size or checksum; the window, whose logarithm counts from 10.
    to.write_all(&[0x28, 0xb5, 0x2f, 0xfd, 0, (WINDOW_LOG - 10) << 3])?;
    loop {
        let length = encoder.fill(from)?;
        let is_last = length < BLOCK;
        to.write_all(encoder.block(length, is_last))?;
        if is_last {
            return Ok(());
        }
    }
}

/// So many literals, then a match.
struct Sequence {
    literals: u32,
    length: u32,
    offset: u32,
}

struct Encoder {
    /// What can be matched, and behind it the block.
    bytes: Vec<u8>,
    /// Where the block begins in `bytes`.
    start: usize,
    /// Where a hash was seen last in `bytes`, plus 1.
    seen: Vec<u32>,
    sequences: Vec<Sequence>,
    literals: Vec<u8>,
    out: Vec<u8>,
    tables: [Table; 3],
}

impl Encoder {
    fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(2 * WINDOW),
            start: 0,
            seen: vec![0; 1 << HASH_LOG],
            sequences: Vec::new(),
            literals: Vec::new(),
            out: Vec::new(),
            tables: [Table::new(6, LITERAL_LENGTHS), Table::new(5, OFFSETS), Table::new(6, MATCH_LENGTHS)],
        }
    }

    /// Reads the next block; its length is [`BLOCK`], and less at the end.
    fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        if self.bytes.len() + BLOCK > 2 * WINDOW {
            let gone = self.bytes.len() - WINDOW;
            self.bytes.drain(..gone);
            self.seen.iter_mut().for_each(|at| *at = at.saturating_sub(gone as u32));
        }
        self.start = self.bytes.len();
        from.take(BLOCK as u64).read_to_end(&mut self.bytes)
    }

    /// The block as bytes of the frame.
    fn block(&mut self, length: usize, is_last: bool) -> &[u8] {
        const RAW: usize = 0;
        const COMPRESSED: usize = 2;
        self.find();
        self.out.clear();
        self.out.extend_from_slice(&[0; 3]);
        self.write_literals();
        self.write_sequences();
        let mut header = COMPRESSED << 1 | (self.out.len() - 3) << 3;
        if self.out.len() - 3 >= length {
            header = RAW << 1 | length << 3;
            self.out.truncate(3);
            self.out.extend_from_slice(&self.bytes[self.start..]);
        }
        header |= usize::from(is_last);
        self.out[..3].copy_from_slice(&header.to_le_bytes()[..3]);
        &self.out
    }

    /// Divides the block into sequences and literals that follow the last one.
    fn find(&mut self) {
        self.sequences.clear();
        self.literals.clear();
        let bytes = &self.bytes[..];
        let (mut at, mut done) = (self.start, self.start);
        while at + 8 <= bytes.len() {
            let place = &mut self.seen[hash(bytes, at)];
            let candidate = std::mem::replace(place, at as u32 + 1) as usize;
            let Some(before) = candidate.checked_sub(1).filter(|before| at - before <= WINDOW) else {
                at += 1;
                continue;
            };
            let mut length = common(&bytes[before..], &bytes[at..]);
            if length < SHORTEST {
                // Faster over what does not repeat.
                at += 1 + ((at - done) >> 7);
                continue;
            }
            let (mut from, mut back) = (at, before);
            while from > done && back > 0 && bytes[from - 1] == bytes[back - 1] {
                (from, back, length) = (from - 1, back - 1, length + 1);
            }
            let (literals, offset) = ((from - done) as u32, (from - back) as u32);
            self.sequences.push(Sequence { literals, length: length as u32, offset });
            self.literals.extend_from_slice(&bytes[done..from]);
            done = from + length;
            // The end of a match is what the next one like it goes on from.
            if done + 8 <= bytes.len() {
                self.seen[hash(bytes, done - 2)] = (done - 2) as u32 + 1;
            }
            at = done;
        }
        self.literals.extend_from_slice(&bytes[done..]);
    }

    /// RFC 8878, 3.1.1.3.1: as they are.
    fn write_literals(&mut self) {
        /// Type raw, and a size of 20 bits.
        const RAW_LONG: usize = 0b1100;
        let header = RAW_LONG | self.literals.len() << 4;
        self.out.extend_from_slice(&header.to_le_bytes()[..3]);
        self.out.extend_from_slice(&self.literals);
    }

    /// RFC 8878, 3.1.1.3.2: with predefined tables. The decoder begins with the bits that were written last.
    fn write_sequences(&mut self) {
        let count = self.sequences.len();
        match count {
            0 => return self.out.push(0),
            1..0x80 => self.out.push(count as u8),
            0x80..0x7f00 => self.out.extend_from_slice(&[(count >> 8) as u8 + 0x80, count as u8]),
            _ => {
                self.out.push(0xff);
                self.out.extend_from_slice(&((count - 0x7f00) as u16).to_le_bytes());
            }
        }
        self.out.push(0);
        let mut bits = Bits { out: &mut self.out, value: 0, count: 0 };
        let [literals, offsets, matches] = &self.tables;
        let mut states: Option<[u8; 3]> = None;
        for sequence in self.sequences.iter().rev() {
            let codes = [
                code(sequence.literals, &LITERAL_CODES),
                offset_code(sequence.offset),
                code(sequence.length, &MATCH_CODES),
            ];
            let symbols = codes.each_ref().map(|code| code.symbol);
            let [literal, offset, matched] = symbols;
            states = Some(match states {
                None => [literals.first(literal), offsets.first(offset), matches.first(matched)],
                Some(next) => {
                    let offset = offsets.step(offset, next[1], &mut bits);
                    let matched = matches.step(matched, next[2], &mut bits);
                    [literals.step(literal, next[0], &mut bits), offset, matched]
                }
            });
            for which in [0, 2, 1] {
                bits.push(codes[which].extra, codes[which].bits);
            }
        }
        let [literal, offset, matched] = states.unwrap_or_default();
        bits.push(u32::from(matched), 6);
        bits.push(u32::from(offset), 5);
        bits.push(u32::from(literal), 6);
        bits.end();
    }
}

/// Of the [`SHORTEST`] bytes there.
fn hash(bytes: &[u8], at: usize) -> usize {
    const PRIME_6: u64 = 227_718_039_650_203;
    ((word(bytes, at) << (64 - 8 * SHORTEST)).wrapping_mul(PRIME_6) >> (64 - HASH_LOG)) as usize
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u64::from_le_bytes)
}

/// How many bytes two slices have in common, the second one being the shorter.
fn common(one: &[u8], other: &[u8]) -> usize {
    let mut length = 0;
    while length + 8 <= other.len() {
        let difference = word(one, length) ^ word(other, length);
        if difference != 0 {
            return length + (difference.trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    length + one[length..].iter().zip(&other[length..]).take_while(|(one, other)| one == other).count()
}

/// A number as a symbol and bits behind it.
struct Code {
    symbol: u8,
    extra: u32,
    bits: u32,
}

/// Lengths: beyond `direct` symbols of one value each, whose first is `least`, stand those with extra bits.
struct Codes {
    least: u32,
    direct: u32,
    bits: &'static [u8],
}

const LITERAL_CODES: Codes = Codes {
    least: 0,
    direct: 16,
    bits: &[1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
};
const MATCH_CODES: Codes = Codes {
    least: 3,
    direct: 32,
    bits: &[1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
};

/// RFC 8878, 3.1.1.3.2.1.1: tables 16 and 17, whose baselines follow from the bits before.
fn code(value: u32, codes: &Codes) -> Code {
    let value = value - codes.least;
    if value < codes.direct {
        return Code { symbol: value as u8, extra: 0, bits: 0 };
    }
    let (mut base, mut symbol) = (codes.direct, codes.direct as u8);
    for bits in codes.bits.iter().map(|bits| u32::from(*bits)) {
        if value < base + (1 << bits) {
            return Code { symbol, extra: value - base, bits };
        }
        base += 1 << bits;
        symbol += 1;
    }
    // A block is not that long.
    Code { symbol: symbol - 1, extra: 0, bits: 16 }
}

/// Never one of the three repeated offsets.
fn offset_code(offset: u32) -> Code {
    let value = offset + 3;
    let bits = value.ilog2();
    Code { symbol: bits as u8, extra: value - (1 << bits), bits }
}

/// RFC 8878, 3.1.1.3.2.2: how many states each symbol has; -1 is one, at the end.
const LITERAL_LENGTHS: &[i8] = &[
    4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1,
    -1, -1,
];
const MATCH_LENGTHS: &[i8] = &[
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
];
const OFFSETS: &[i8] =
    &[1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1];

/// A state of the decoder: its next one is `base` and so many bits.
#[derive(Clone, Copy, Default)]
struct State {
    symbol: u8,
    base: u8,
    bits: u8,
}

/// A table for finite state entropy, as the decoder has it, and the way back.
struct Table {
    states: Vec<State>,
    /// The state for a symbol from which a next state is reached: `back[symbol][next]`.
    back: Vec<[u8; 64]>,
}

impl Table {
    /// RFC 8878, 4.1.1.
    fn new(log: u32, counts: &[i8]) -> Self {
        let size = 1 << log;
        let mut states = vec![State::default(); size];
        let mut end = size;
        for (symbol, _) in counts.iter().enumerate().filter(|(_, count)| **count < 0) {
            end -= 1;
            states[end].symbol = symbol as u8;
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut at = 0;
        for (symbol, count) in counts.iter().enumerate() {
            for _ in 0..*count {
                states[at].symbol = symbol as u8;
                at = (at + step) % size;
                while at >= end {
                    at = (at + step) % size;
                }
            }
        }
        let mut next: Vec<u32> = counts.iter().map(|count| u32::from(count.unsigned_abs())).collect();
        let mut back = vec![[0; 64]; counts.len()];
        for (number, state) in states.iter_mut().enumerate() {
            let symbol = usize::from(state.symbol);
            let bits = log - next[symbol].ilog2();
            let base = (next[symbol] << bits) as usize - size;
            next[symbol] += 1;
            (state.bits, state.base) = (bits as u8, base as u8);
            back[symbol][base..base + (1 << bits)].fill(number as u8);
        }
        Self { states, back }
    }

    /// A state for the last symbol.
    fn first(&self, symbol: u8) -> u8 {
        self.back[usize::from(symbol)][0]
    }

    /// The state for a symbol that `next` comes after; the bits say how.
    fn step(&self, symbol: u8, next: u8, bits: &mut Bits<'_>) -> u8 {
        let number = self.back[usize::from(symbol)][usize::from(next)];
        let state = self.states[usize::from(number)];
        bits.push(u32::from(next - state.base), u32::from(state.bits));
        number
    }
}

/// Bits, the lowest first.
struct Bits<'a> {
    out: &'a mut Vec<u8>,
    value: u64,
    count: u32,
}

impl Bits<'_> {
    /// Appends the lowest `count` bits of `value`, at most 32.
    fn push(&mut self, value: u32, count: u32) {
        self.value |= u64::from(value) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.out.push(self.value as u8);
            self.value >>= 8;
            self.count -= 8;
        }
    }

    /// Appends the bit that tells the decoder where to begin.
    fn end(mut self) {
        self.push(1, 1);
        if self.count > 0 {
            self.out.push(self.value as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(bytes: &[u8]) -> usize {
        let mut packed = Vec::new();
        compress(&mut &bytes[..], &mut packed).expect("memory takes everything");
        let mut unpacked = Vec::with_capacity(bytes.len() + 1);
        zstd_safe::decompress(&mut unpacked, &packed).map_err(zstd_safe::get_error_name).expect("a frame");
        assert!(unpacked == bytes, "{} bytes differ", bytes.len());
        packed.len()
    }

    fn random(seed: &mut u32) -> u32 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 17;
        *seed ^= *seed << 5;
        *seed
    }

    #[test]
    fn libzstd_reads_what_is_written() {
        let mut seed = 1;
        for length in [0, 1, 5, 100, BLOCK - 1, BLOCK, BLOCK + 1, 3 * WINDOW + 77] {
            there_and_back(&vec![b'x'; length]);
            // Letters of an alphabet that grows: from all matches to none.
            for letters in [2, 4, 20, 256] {
                let bytes: Vec<u8> =
                    (0..length).map(|_| (random(&mut seed) >> 8) as u8 % letters.min(255) as u8).collect();
                there_and_back(&bytes);
            }
        }
    }

    #[test]
    fn matches_of_every_length_and_distance_come_back() {
        let (mut seed, mut bytes) = (7, Vec::new());
        while bytes.len() < 2_000_000 {
            let noise = random(&mut seed) % (1 << (random(&mut seed) % 12));
            bytes.extend((0..noise).map(|_| random(&mut seed) as u8));
            let from = random(&mut seed) as usize % (bytes.len() + 1);
            let length = random(&mut seed) as usize % (1 << (random(&mut seed) % 18));
            let to = bytes.len().min(from + length);
            bytes.extend_from_within(from..to);
        }
        there_and_back(&bytes);
    }

    #[test]
    fn a_log_becomes_small() {
        let (mut seed, mut log) = (3, String::new());
        for number in 0..100_000 {
            let (status, time) = (200 + random(&mut seed) % 4, random(&mut seed) % 5000);
            log +=
                &format!("2026-11-21T10:32:15.{number:06}Z | GET /orders/{} {status} {time} us\n", time * 7);
        }
        let packed = there_and_back(log.as_bytes());
        assert!(packed * 3 < log.len(), "{packed} of {}", log.len());
    }
}
