//! Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use super::usage::{self, Usage};
use super::{State, Status, UnixMs};

/// The content type that goes with it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A family of samples.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

const BUNDLE: Family =
    Family { name: "kitbag_bundle_info", kind: "gauge", help: "The running bundle; always 1." };
const READY: Family =
    Family { name: "kitbag_bundle_ready", kind: "gauge", help: "1 if all services of the bundle are ready." };
const START: Family = Family {
    name: "kitbag_bundle_start_time_seconds",
    kind: "gauge",
    help: "When the supervisor began, since 1970.",
};
const UP: Family = Family { name: "kitbag_unit_up", kind: "gauge", help: "1 if the unit has a process." };
const STATE: Family =
    Family { name: "kitbag_unit_state", kind: "gauge", help: "1 for the state that the unit is in." };
const RESTARTS: Family = Family {
    name: "kitbag_unit_restarts_total",
    kind: "counter",
    help: "Starts of a service that nobody asked for; runs of a task.",
};
const SINCE: Family = Family {
    name: "kitbag_unit_state_since_seconds",
    kind: "gauge",
    help: "When the unit came to its state, since 1970.",
};
const MEMORY: Family = Family {
    name: "kitbag_unit_memory_bytes",
    kind: "gauge",
    help: "Resident memory of the unit's main process.",
};
const CPU: Family = Family {
    name: "kitbag_unit_cpu_seconds_total",
    kind: "counter",
    help: "Processor time of the unit's main process and of children that it has waited for.",
};

/// A page in the making: for each unit a line of /proc is read, and some sixteen lines are written. A step does a part of
/// that for one unit.
pub struct Page {
    text: String,
    status: Status,
    /// The labels of each unit, and what its process uses.
    units: Vec<(String, Option<Usage>)>,
    /// Families that are whole.
    families: usize,
    /// Units of the next one that are written.
    written: usize,
}

/// The families that each unit is in: one is written after the other.
const EACH: [&Family; 6] = [&UP, &STATE, &RESTARTS, &SINCE, &MEMORY, &CPU];

impl Page {
    /// A page of this status, with the bundle's own lines.
    pub fn new(status: Status) -> Self {
        let mut page = Self { text: String::new(), status, units: Vec::new(), families: 0, written: 0 };
        let (bundle, version) = (escaped(&page.status.bundle), escaped(&page.status.version));
        page.family(&BUNDLE);
        page.line(&BUNDLE, &format!("bundle=\"{bundle}\",version=\"{version}\""), "", "1");
        let labels = format!("bundle=\"{bundle}\"");
        page.family(&READY);
        page.line(&READY, &labels, "", bit(page.status.readiness("") == super::Readiness::Ready));
        page.family(&START);
        page.line(&START, &labels, "", &seconds(page.status.since));
        page
    }

    /// Goes on with the next unit; false if all is done.
    pub fn step(&mut self) -> bool {
        if self.units.len() < self.status.units.len() {
            self.look();
            return true;
        }
        let Some(&family) = EACH.get(self.families) else { return false };
        if self.written == 0 {
            self.family(family);
        }
        if self.written < self.units.len() {
            let (labels, usage) = std::mem::take(&mut self.units[self.written]);
            self.write(family, self.written, &labels, usage);
            self.units[self.written] = (labels, usage);
            self.written += 1;
        } else {
            (self.families, self.written) = (self.families + 1, 0);
        }
        true
    }

    /// The page, once nothing is left to do.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Finds out what the next unit's process uses.
    fn look(&mut self) {
        let unit = &self.status.units[self.units.len()];
        let (bundle, service, name) =
            (escaped(&self.status.bundle), escaped(&unit.service), escaped(&unit.name));
        let labels = format!("bundle=\"{bundle}\",service=\"{service}\",unit=\"{name}\"");
        self.units.push((labels, unit.pid.and_then(usage::of_process)));
    }

    /// A unit's sample, if it has one; of its state, one for each state.
    fn write(&mut self, family: &Family, number: usize, labels: &str, usage: Option<Usage>) {
        let unit = &self.status.units[number];
        let value = match family.name {
            name if name == STATE.name => {
                let current = unit.state;
                for state in State::all() {
                    self.line(family, labels, state.name(), bit(state == current));
                }
                return;
            }
            name if name == UP.name => Some(bit(unit.pid.is_some()).to_owned()),
            name if name == RESTARTS.name => Some(unit.restarts.to_string()),
            name if name == SINCE.name => Some(seconds(unit.since)),
            name if name == MEMORY.name => usage.map(|usage| usage.memory.to_string()),
            _ => usage.map(|usage| seconds(usage.cpu_ms.cast_signed())),
        };
        if let Some(value) = value {
            self.line(family, labels, "", &value);
        }
    }

    fn family(&mut self, family: &Family) {
        let Family { name, kind, help } = family;
        self.text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A sample; with a state, that is one more label.
    fn line(&mut self, family: &Family, labels: &str, state: &str, value: &str) {
        let parts = if state.is_empty() {
            [family.name, "{", labels, "", "", "} ", value, "\n"]
        } else {
            [family.name, "{", labels, ",state=\"", state, "\"} ", value, "\n"]
        };
        parts.iter().for_each(|part| self.text.push_str(part));
    }
}

const fn bit(set: bool) -> &'static str {
    if set { "1" } else { "0" }
}

/// `1795255923.120`
fn seconds(ms: UnixMs) -> String {
    format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000))
}

/// A label's value: backslash, quote and newline are escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::Unit;
    use super::*;

    fn render(status: Status) -> String {
        let mut page = Page::new(status);
        while page.step() {}
        page.into_text()
    }

    #[test]
    fn a_page_has_each_family_once_and_escapes_labels() {
        let unit =
            |name: &str, pid| Unit { name: name.into(), service: "we\"b\\\n".into(), pid, ..Unit::default() };
        let own = std::process::id().cast_signed();
        let status = Status {
            bundle: "shop".into(),
            version: "1".into(),
            since: 1_500,
            units: vec![unit("web.0", Some(own)), unit("web.1", None)],
            ..Status::default()
        };
        let page = render(status);
        let types: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(types.len(), 9, "{page}");
        assert!(page.contains("kitbag_bundle_start_time_seconds{bundle=\"shop\"} 1.500\n"), "{page}");
        let labels = r#"{bundle="shop",service="we\"b\\\n",unit="web.0"}"#;
        assert!(page.contains(&format!("kitbag_unit_up{labels} 1\n")), "{page}");
        assert!(page.contains(&format!("kitbag_unit_memory_bytes{labels} ")), "{page}");
        let memory = page.lines().filter(|line| line.starts_with("kitbag_unit_memory_bytes{")).count();
        assert_eq!(memory, 1, "{page}");
        assert!(page.contains("kitbag_unit_state{bundle=\"shop\",service=\"we\\\"b\\\\\\n\",unit=\"web.1\",state=\"waiting\"} 1\n"));
        assert_eq!(page.lines().filter(|line| line.starts_with("kitbag_unit_state{")).count(), 22, "{page}");
        // Each line of a family follows its head: what is no comment has the name of the last one.
        let mut family = "";
        for line in page.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap_or_default(),
                None => assert!(line.starts_with('#') || line.split('{').next() == Some(family), "{line}"),
            }
        }
        assert!(page.ends_with('\n') && page.is_ascii());
    }
}
