//! Who has a number that is asked for again and again: looked for once in a while, as that reads all of /proc.

use super::holder::Holder;
use super::lease::Net;
use super::refused::Refused;
use crate::state::Ms;
use crate::status::usage;
use crate::sys::Pid;

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
    /// The sentence.
    text: String,
    /// The holder's process, and when it began, which tells it from a later one of that id.
    process: Option<(Pid, Option<u64>)>,
}

impl Looked {
    /// What was refused, with who it is that has the number; asks `look` if that is not known, or was long ago.
    #[must_use]
    pub fn explained(
        &mut self,
        refused: Refused,
        now: Ms,
        look: impl FnOnce(u16, Net) -> Option<Holder>,
    ) -> String {
        let (number, net) = match &refused {
            &Refused::Taken { number, net, holder: None } => (number, net),
            // All of them may have as many holders; one tells what sort they are.
            &Refused::NoneFree { low, net, .. } => (low, net),
            other => return other.to_string(),
        };
        self.0.retain(|answer| answer.holds(now));
        let same = |answer: &&Answer| (answer.number, answer.net) == (number, net);
        if let Some(answer) = self.0.iter().find(same) {
            return answer.text.clone();
        }
        let holder = look(number, net).map(Box::new);
        let process = holder.as_ref().and_then(|holder| holder.process()).map(|process| process.pid);
        let process = process.map(|pid| (pid, usage::start_of_process(pid)));
        let text = match (&refused, holder) {
            (Refused::NoneFree { .. }, Some(holder)) => format!("{refused}; {number} by {holder}"),
            (Refused::NoneFree { .. }, None) => refused.to_string(),
            (_, holder) => Refused::Taken { number, net, holder }.to_string(),
        };
        self.0.push(Answer { number, net, at: now, text: text.clone(), process });
        text
    }

    /// The number was free: who has it next is somebody else.
    pub fn forget(&mut self, number: u16, net: Net) {
        self.0.retain(|answer| (answer.number, answer.net) != (number, net));
    }
}

impl Answer {
    fn holds(&self, now: Ms) -> bool {
        let lives = |(pid, start): (Pid, _)| usage::start_of_process(pid) == start;
        now.saturating_sub(self.at) < FRESH && self.process.is_none_or(lives)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::process::Command;

    use super::*;
    use crate::ports::holder::Process;

    fn taken(number: u16) -> Refused {
        Refused::Taken { number, net: Net::Tcp, holder: None }
    }

    fn by(pid: u32) -> Option<Holder> {
        let pid = Pid::try_from(pid).expect("a process id");
        Some(Holder::Process(Process { pid, command: "holds".into(), ..Process::default() }))
    }

    fn names(text: &str, pid: u32) -> bool {
        text.starts_with("port 8")
            && text.contains(&format!("/tcp is taken by process {pid}, `holds`; stop it"))
    }

    #[test]
    fn a_holder_is_looked_for_once_in_a_while_and_named_each_time() {
        let (mut looked, looks) = (Looked::default(), Cell::new(0));
        let own = std::process::id();
        let mut ask = |number, now| {
            let look = |_, _| {
                looks.set(looks.get() + 1);
                by(own)
            };
            let text = looked.explained(taken(number), now, look);
            assert!(names(&text, own), "{text}");
            looks.get()
        };
        let times = [(80, 0), (80, 100), (80, FRESH - 1), (80, FRESH), (81, FRESH), (80, FRESH + 1)];
        assert_eq!(times.map(|(number, now)| ask(number, now)), [1, 1, 1, 2, 3, 3]);
    }

    #[test]
    fn a_holder_that_has_gone_or_let_go_is_looked_for_again() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let (own, mut looked) = (std::process::id(), Looked::default());
        let first = looked.explained(taken(80), 0, |_, _| by(child.id()));
        assert!(names(&first, child.id()), "{first}");
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let mut ask = |now, holder| looked.explained(taken(80), now, |_, _| holder);
        assert!(names(&ask(1, by(own)), own));
        assert!(names(&ask(2, None), own));
        looked.forget(80, Net::Udp);
        let mut ask = |now, holder| looked.explained(taken(80), now, |_, _| holder);
        assert!(names(&ask(3, None), own));
        looked.forget(80, Net::Tcp);
        let mut ask = |now, holder| looked.explained(taken(80), now, |_, _| holder);
        // That nobody is to be seen is an answer too.
        for (now, holder) in [(4, None), (5, by(own))] {
            let text = ask(now, holder);
            assert!(text.contains("not to be seen"), "{text}");
        }
    }

    #[test]
    fn what_is_not_taken_is_told_as_it_is() {
        let refused = Refused::Forbidden { number: 80, first: 1024 };
        let text = Looked::default().explained(refused.clone(), 0, |_, _| panic!("nobody has it"));
        assert_eq!(text, refused.to_string());
    }
}
