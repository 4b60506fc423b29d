//! Who has a number that is asked for again and again: looked for once in a while, as that reads all of /proc.

use super::holder::Holder;
use super::lease::Net;
use super::refused::Refused;
use crate::state::Ms;
use crate::status::usage;

/// An answer holds so long, if its process does.
const FRESH: Ms = 10_000;

/// Who was found to have which number.
#[derive(Debug, Default)]
pub struct Looked(Vec<Answer>);

#[derive(Debug)]
struct Answer {
    number: u16,
    net: Net,
    at: Ms,
    holder: Option<Box<Holder>>,
    /// When its process began, which tells it from a later one of that id.
    start: Option<u64>,
}

impl Looked {
    /// What was refused, with who it is that has the number; asks `look` if that is not known, or was long ago.
    #[must_use]
    pub fn explained(
        &mut self,
        refused: Refused,
        now: Ms,
        look: impl FnOnce(u16, Net) -> Option<Holder>,
    ) -> Refused {
        let Refused::Taken { number, net, holder: None } = refused else { return refused };
        self.0.retain(|answer| answer.holds(now));
        let known = self.0.iter().find(|answer| (answer.number, answer.net) == (number, net));
        let holder = match known {
            Some(answer) => answer.holder.clone(),
            None => {
                let holder = look(number, net).map(Box::new);
                let start = start_of(holder.as_deref());
                self.0.push(Answer { number, net, at: now, holder: holder.clone(), start });
                holder
            }
        };
        Refused::Taken { number, net, holder }
    }

    /// The number was free: who has it next is somebody else.
    pub fn forget(&mut self, number: u16, net: Net) {
        self.0.retain(|answer| (answer.number, answer.net) != (number, net));
    }
}

impl Answer {
    fn holds(&self, now: Ms) -> bool {
        now.saturating_sub(self.at) < FRESH && start_of(self.holder.as_deref()) == self.start
    }
}

fn start_of(holder: Option<&Holder>) -> Option<u64> {
    usage::start_of_process(holder?.process()?.pid)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::process::Command;

    use super::*;
    use crate::ports::holder::Process;
    use crate::sys::Pid;

    fn taken(number: u16) -> Refused {
        Refused::Taken { number, net: Net::Tcp, holder: None }
    }

    fn by(pid: u32) -> Option<Holder> {
        let pid = Pid::try_from(pid).expect("a process id");
        Some(Holder::Process(Process { pid, command: "holds".into(), ..Process::default() }))
    }

    #[test]
    fn a_holder_is_looked_for_once_in_a_while_and_named_each_time() {
        let (mut looked, looks) = (Looked::default(), Cell::new(0));
        let own = by(std::process::id());
        let mut ask = |number, now| {
            let look = |_, _| {
                looks.set(looks.get() + 1);
                own.clone()
            };
            let refused = looked.explained(taken(number), now, look);
            assert_eq!(refused.holder(), own.as_ref());
            looks.get()
        };
        let times = [(80, 0), (80, 100), (80, FRESH - 1), (80, FRESH), (81, FRESH), (80, FRESH + 1)];
        assert_eq!(times.map(|(number, now)| ask(number, now)), [1, 1, 1, 2, 3, 3]);
    }

    #[test]
    fn a_holder_that_has_gone_or_let_go_is_looked_for_again() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let mut looked = Looked::default();
        let first = looked.explained(taken(80), 0, |_, _| by(child.id()));
        assert_eq!(first.holder(), by(child.id()).as_ref());
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let own = by(std::process::id());
        assert_eq!(looked.explained(taken(80), 1, |_, _| own.clone()).holder(), own.as_ref());
        looked.forget(80, Net::Udp);
        assert_eq!(looked.explained(taken(80), 2, |_, _| None).holder(), own.as_ref());
        looked.forget(80, Net::Tcp);
        assert_eq!(looked.explained(taken(80), 3, |_, _| None).holder(), None);
        // That nobody is to be seen is an answer too.
        assert_eq!(looked.explained(taken(80), 4, |_, _| own).holder(), None);
    }

    #[test]
    fn what_is_not_taken_is_left_as_it_is() {
        let refused = Refused::Forbidden { number: 80, first: 1024 };
        let looked = Looked::default().explained(refused.clone(), 0, |_, _| panic!("nobody has it"));
        assert_eq!(looked, refused);
    }
}
