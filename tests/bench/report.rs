//! Results: one table, JSON, and a short table for people who read docs/benchmark.md.

use std::fmt::Write;

/// One figure beside its peer and its bar.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured, with its unit.
    pub what: String,
    /// On which input.
    pub input: String,
    /// kitbag's figure.
    pub ours: f64,
    /// The peer it is compared with, and the peer's figure.
    pub peer: Option<(String, f64)>,
    /// What the figure, or its ratio to the peer's, must not exceed (or must reach, see `at_least`).
    pub bar: Option<Bar>,
    /// Other things seen.
    pub note: String,
}

/// A demand.
#[derive(Debug, Clone, Copy)]
pub enum Bar {
    /// The figure is at most this.
    Most(f64),
    /// The figure is at least this.
    Least(f64),
    /// The figure is at most so many times the peer's.
    Ratio(f64),
}

impl Row {
    /// A figure without peer and bar.
    pub fn new(what: &str, input: &str, ours: f64) -> Row {
        Row {
            what: what.to_owned(),
            input: input.to_owned(),
            ours,
            peer: None,
            bar: None,
            note: String::new(),
        }
    }

    /// Beside a peer's figure.
    pub fn peer(mut self, name: &str, figure: f64) -> Row {
        self.peer = Some((name.to_owned(), figure));
        self
    }

    /// With a demand.
    pub fn bar(mut self, bar: Bar) -> Row {
        self.bar = Some(bar);
        self
    }

    /// With a remark.
    pub fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }

    /// kitbag's figure as a multiple of the peer's.
    pub fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|(_, figure)| self.ours / figure)
    }

    /// Whether the demand is met; `None` without one. A figure that could not be taken meets none.
    pub fn passes(&self) -> Option<bool> {
        Some(match self.bar? {
            Bar::Most(most) => self.ours <= most,
            Bar::Least(least) => self.ours >= least,
            Bar::Ratio(most) => self.ratio().is_some_and(|ratio| ratio <= most),
        })
    }

    fn cells(&self) -> [String; 8] {
        let (peer, figure) =
            self.peer.clone().map_or((String::new(), String::new()), |(name, x)| (name, number(x)));
        let bar = match self.bar {
            None => String::new(),
            Some(Bar::Most(x)) => format!("<= {}", number(x)),
            Some(Bar::Least(x)) => format!(">= {}", number(x)),
            Some(Bar::Ratio(x)) => format!("<= {} x", number(x)),
        };
        let verdict = self.passes().map_or("", |passes| if passes { "pass" } else { "FAIL" });
        let ratio = self.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        [
            self.what.clone(),
            self.input.clone(),
            number(self.ours),
            peer,
            figure,
            ratio,
            bar,
            verdict.to_owned(),
        ]
    }
}

/// Three digits that count, without an exponent.
fn number(x: f64) -> String {
    match x.abs() {
        _ if x.is_nan() => "-".to_owned(),
        a if x.fract() == 0.0 && a < 1e6 => format!("{x:.0}"),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.3}"),
        _ => format!("{x:.3}"),
    }
}

const HEAD: [&str; 8] = ["what", "input", "kitbag", "peer", "figure", "ratio", "bar", ""];

/// The rows as a table for terminals, with what did not work or is missing below.
pub fn table(rows: &[Row], notes: &[String]) -> String {
    let lines: Vec<[String; 8]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut out = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let note = number.checked_sub(1).map_or("", |row| rows[row].note.as_str());
        let _ = writeln!(out, "{}", format!("{}  {note}", cells.join("  ")).trim_end());
    }
    for note in notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// The rows in Markdown.
pub fn markdown(rows: &[Row], notes: &[String], machine: &str) -> String {
    let mut out = format!(
        "# Benchmark\n\n`cargo bench -p kitbag-tests` takes these figures; `-- --update-docs` writes this page.\n\
         Compare ratios, not absolutes: {machine}. Sizes are exact, times are medians.\n\n| {} |\n|{}\n",
        HEAD.join(" | "),
        " --- |".repeat(HEAD.len())
    );
    for row in rows {
        let _ = writeln!(out, "| {} |", row.cells().join(" | "));
    }
    out.push('\n');
    for note in notes {
        let _ = writeln!(out, "- {note}");
    }
    out
}

/// The rows for other programs.
pub fn json(rows: &[Row], notes: &[String], machine: &str) -> String {
    let row = |row: &Row| {
        let (peer, figure) = row.peer.clone().unzip();
        serde_json::json!({
            "what": row.what, "input": row.input, "kitbag": finite(row.ours), "peer": peer, "peer_figure": figure.and_then(finite),
            "ratio": row.ratio().and_then(finite), "bar": row.bar.map(|bar| format!("{bar:?}")), "pass": row.passes(),
            "note": row.note,
        })
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    format!("{:#}\n", serde_json::json!({ "machine": machine, "rows": rows, "notes": notes }))
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}
