//! What a successor has to know: [`Snapshot`], read from the loop's data alone.

use std::os::fd::AsRawFd;

use crate::snapshot::{Descriptors, Moment, Part, Port, Process, Snapshot, Unit};

use super::ports::Held;
use super::units::Id;
use super::{Supervisor, unix_ms};

/// Where the kernel says which start of the machine this is (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Which start of the machine this is; empty where there is no /proc.
pub fn boot() -> String {
    std::fs::read_to_string(BOOT).unwrap_or_default().trim().to_owned()
}

impl Supervisor {
    /// All that this supervisor knows and a successor could not find out.
    pub(super) fn remember(&self) -> Snapshot {
        let own = std::process::id().cast_signed();
        Snapshot {
            bundle: self.bundle.clone(),
            version: self.version.clone(),
            taken: Moment { boot: self.boot.clone(), wall: unix_ms(), now: self.now() },
            supervisor: Process { pid: own, start: self.start },
            since: self.began,
            whole: self.whole,
            stays: self.stays,
            open_files: self.limit.map(|limit| [limit.rlim_cur, limit.rlim_max]),
            strangers: self.strangers.clone(),
            control: self.listener,
            marks: self.descent.marks(),
            parts: (0..self.parts.len()).map(|part| self.remember_part(part)).collect(),
        }
    }

    /// When a process was started, if a successor can compare it: where there is no /proc, our own is not known either.
    fn told(&self, start: Option<u64>) -> Option<u64> {
        start.filter(|_| self.start.is_some())
    }

    fn remember_part(&self, part: usize) -> Part {
        let members = &self.parts[part];
        Part {
            name: members.spec.name.clone(),
            wanted: members.wanted,
            plan: members.plan,
            sockets: leased(&members.sockets),
            units: members.units.iter().map(|id| self.remember_unit(*id)).collect(),
        }
    }

    fn remember_unit(&self, id: Id) -> Unit {
        let unit = &self.units[id];
        let run = unit.service.state.run();
        let [stdout, stderr] = self.logs.descriptors(id);
        Unit {
            instance: unit.instance,
            number: id,
            main: unit.main,
            ports: leased(&unit.ports),
            service: unit.service.clone(),
            leader: run.map(|run| Process { pid: run.group, start: self.told(unit.start) }),
            reaped: run.is_some() && unit.leader.is_none(),
            intent: unit.intent,
            queued: unit.queued,
            held: unit.held,
            since: unit.since,
            reason: unit.reason.clone(),
            failed_need: unit.failed_need,
            says: unit.says.as_deref().map(str::to_owned),
            helper: unit
                .helper
                .as_ref()
                .map(|helper| (Process { pid: helper.pid, start: self.told(helper.start) }, helper.late_at)),
            cgroup: unit.cgroup.as_ref().map(|cgroup| cgroup.path().to_string_lossy().into_owned()),
            short_of_memory: unit.short_of_memory,
            out_of_memory: unit.out_of_memory,
            notify_socket: self.notify.address(id as u64),
            descriptors: Descriptors {
                stdout,
                stderr,
                newline: unit.newline.as_ref().map(AsRawFd::as_raw_fd),
                notify: self.notify.descriptor(id as u64),
            },
        }
    }
}

fn leased(ports: &[Option<Held>]) -> Vec<Option<Port>> {
    ports.iter().map(|held| held.as_ref().map(Held::remember)).collect()
}
