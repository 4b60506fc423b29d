//! Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use super::usage::{self, Usage};
use super::{State, Status, Unit, UnixMs};

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

/// The whole page. Reads a line of /proc for each running unit.
pub fn render(status: &Status) -> String {
    let usages: Vec<Option<Usage>> =
        status.units.iter().map(|unit| unit.pid.and_then(usage::of_process)).collect();
    let mut page = Page { text: String::new(), bundle: escaped(&status.bundle) };
    let (bundle, version) = (page.bundle.clone(), escaped(&status.version));
    page.family(&BUNDLE);
    page.line(BUNDLE.name, &format!("bundle=\"{bundle}\",version=\"{version}\""), "1");
    let labels = format!("bundle=\"{bundle}\"");
    page.family(&READY);
    page.line(READY.name, &labels, bit(status.readiness("") == super::Readiness::Ready));
    page.family(&START);
    page.line(START.name, &labels, &seconds(status.since));
    page.each(&UP, status, |unit| Some(bit(unit.pid.is_some()).to_owned()));
    page.states(status);
    page.each(&RESTARTS, status, |unit| Some(unit.restarts.to_string()));
    page.each(&SINCE, status, |unit| Some(seconds(unit.since)));
    let mut of = usages.iter();
    page.each(&MEMORY, status, |_| of.next()?.map(|usage| usage.memory.to_string()));
    let mut of = usages.iter();
    page.each(&CPU, status, |_| of.next()?.map(|usage| seconds(usage.cpu_ms.cast_signed())));
    page.text
}

struct Page {
    text: String,
    bundle: String,
}

impl Page {
    fn family(&mut self, family: &Family) {
        let Family { name, kind, help } = family;
        self.text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, name: &str, labels: &str, value: &str) {
        self.text.push_str(&format!("{name}{{{labels}}} {value}\n"));
    }

    fn labels(&self, unit: &Unit) -> String {
        let (service, name) = (escaped(&unit.service), escaped(&unit.name));
        format!("bundle=\"{}\",service=\"{service}\",unit=\"{name}\"", self.bundle)
    }

    /// A sample for each unit that has one.
    fn each(&mut self, family: &Family, status: &Status, mut value: impl FnMut(&Unit) -> Option<String>) {
        self.family(family);
        for unit in &status.units {
            if let Some(value) = value(unit) {
                let labels = self.labels(unit);
                self.line(family.name, &labels, &value);
            }
        }
    }

    fn states(&mut self, status: &Status) {
        self.family(&STATE);
        for unit in &status.units {
            let labels = self.labels(unit);
            for state in State::all() {
                let labels = format!("{labels},state=\"{}\"", state.name());
                self.line(STATE.name, &labels, bit(unit.state == state));
            }
        }
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
    use super::*;

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
        let page = render(&status);
        let types: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(types.len(), 9, "{page}");
        assert!(page.contains("kitbag_bundle_start_time_seconds{bundle=\"shop\"} 1.500\n"), "{page}");
        let labels = r#"{bundle="shop",service="we\"b\\\n",unit="web.0"}"#;
        assert!(page.contains(&format!("kitbag_unit_up{labels} 1\n")), "{page}");
        assert!(page.contains(&format!("kitbag_unit_memory_bytes{labels} ")), "{page}");
        let memory = page.lines().filter(|line| line.starts_with("kitbag_unit_memory_bytes{")).count();
        assert_eq!(memory, 1, "{page}");
        assert!(page.ends_with('\n') && page.is_ascii());
    }
}
