//! What services say, and what they are asked: newlines, sd_notify(3), probes.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use crate::notify::Message;
use crate::spawn::environment;
use crate::state::{End, Event, Ms, State};
use crate::sys::{fd, signal};

use super::spec::{ProgramSpec, Question, What};
use super::units::{Helper, Id};
use super::{Supervisor, words};

impl Supervisor {
    /// Ends what asks how a process is, when that is no longer asked.
    pub(super) fn stop_watching(&mut self, id: Id, before: State, after: State) {
        let watched = |state: State| matches!(state, State::Running { .. } | State::Ready { .. });
        let turned_ready = matches!((before, after), (State::Running { .. }, State::Ready { .. }));
        if (watched(before) && !watched(after)) || turned_ready {
            self.probes.cancel(id as u64);
            self.end_helper(id);
        }
    }

    pub(super) fn close_newline(&mut self, id: Id) {
        if let Some(pipe) = self.units[id].newline.take() {
            // Closing alone would leave it in the set while a child has a copy.
            let _ = self.events.delete(&pipe);
        }
    }

    /// A service has written to its readiness descriptor, or closed it.
    pub(super) fn take_newline(&mut self, id: Id) {
        let Some(pipe) = self.units.get(id).and_then(|unit| unit.newline.as_ref()) else { return };
        let mut buffer = [0; 256];
        match fd::read(pipe.as_fd(), &mut buffer) {
            Ok(Some(length @ 1..)) if buffer[..length].contains(&b'\n') => {
                self.close_newline(id);
                self.feed(id, Event::SaysReady);
            }
            Ok(Some(1..) | None) => {}
            Ok(Some(0)) | Err(_) => {
                self.close_newline(id);
                // Its end closes it, too, and has reasons of its own.
                if matches!(self.units[id].service.state, State::Running { .. }) {
                    self.units[id].reason =
                        Some("it closed its readiness descriptor without a newline".to_owned());
                }
            }
        }
    }

    /// Services have sent messages.
    pub(super) fn take_messages(&mut self) {
        for (key, messages) in self.notify.serve() {
            let Some(id) = usize::try_from(key).ok().filter(|id| *id < self.units.len()) else { continue };
            for message in messages {
                self.take_message(id, message);
            }
        }
    }

    /// Takes what a unit has said before its end.
    pub(super) fn hear(&mut self, id: Id) {
        if self.parts[self.units[id].part].spec.notify {
            for message in self.notify.hear(id as u64) {
                self.take_message(id, message);
            }
        }
    }

    fn take_message(&mut self, id: Id, message: Message) {
        let event = match message {
            Message::Ready => Event::SaysReady,
            Message::Reloading => Event::SaysReloading,
            Message::Stopping => Event::SaysStopping,
            Message::Watchdog => Event::SaysAlive,
            Message::WatchdogTrigger => Event::SaysStuck,
            Message::ExtendTimeout(span) => Event::Extend(span),
            Message::Status(text) => {
                self.units[id].says = Some(text.into());
                return;
            }
            Message::Errno(number) => {
                self.units[id].reason = Some(format!("it says: {}", words::errno(number)));
                return;
            }
            Message::MainPid(pid) => {
                self.name_main(id, pid);
                return;
            }
            // The interval is the manifest's.
            Message::WatchdogInterval(_) => return,
        };
        self.feed(id, event);
    }

    // --- Probes ---

    /// Keeps the ruleset of a unit's process for its probes, if any of them is a program: what it may do holds for them, too,
    /// and is what it was at the start. Nothing is opened in the loop for it.
    pub(super) fn keep_ruleset(&mut self, id: Id, ruleset: Option<OwnedFd>) {
        let unit = &mut self.units[id];
        let spec = &self.parts[unit.part].spec;
        let is_program =
            |question: &Question| matches!(question.what, What::Program(_) | What::LateProgram(..));
        let is_probed = spec.ready.iter().chain(&spec.health).any(|question| is_program(question));
        unit.ruleset = ruleset.filter(|_| is_probed);
    }

    /// Asks how a unit is.
    pub(super) fn probe(&mut self, id: Id) {
        let now = self.now();
        let unit = &self.units[id];
        let spec = &self.parts[unit.part].spec;
        let ready = matches!(unit.service.state, State::Ready { .. });
        let Some(question) = (if ready { &spec.health } else { &spec.ready }) else { return };
        let late_at = now.saturating_add(question.timeout);
        let failure = match &question.what {
            What::Network(ask) => {
                self.probes.start(id as u64, ask, now, question.timeout).map_err(|why| why.to_string()).err()
            }
            What::Late(ask, address) => {
                let ask = self.late_ask(id, ask, address);
                let mut start = |ask| self.probes.start(id as u64, &ask, now, question.timeout);
                ask.and_then(|ask| start(ask).map_err(|why| why.to_string())).err()
            }
            What::Program(program) => {
                let mut program = program.clone();
                if !unit.from_files.is_empty() {
                    environment::put(Rc::make_mut(&mut program.env), &unit.from_files);
                }
                self.ask_program(id, &program, late_at).err()
            }
            What::LateProgram(program, late) => {
                let program = self.late_program(id, program, &late.clone());
                program.and_then(|program| self.ask_program(id, &program, late_at)).err()
            }
        };
        if let Some(why) = failure {
            self.answer(id, Err(why));
        }
    }

    /// Starts the program that asks how a unit is; why not, if it does not start.
    fn ask_program(&mut self, id: Id, program: &ProgramSpec, late_at: Ms) -> Result<(), String> {
        let started = self.start_helper(id, program, late_at);
        let setup = &self.parts[self.units[id].part].spec.setup;
        started.map_err(|fault| words::not_started(program, setup, fault))
    }

    /// Takes the answers that have come over the network, or not in time.
    pub(super) fn take_probes(&mut self) {
        let now = self.now();
        for (key, answer) in self.probes.serve(now) {
            let id = usize::try_from(key).unwrap_or(usize::MAX);
            self.answer(id, answer.map_err(|why| why.to_string()));
        }
    }

    /// A probe has its answer.
    fn answer(&mut self, id: Id, answer: Result<(), String>) {
        let Some(unit) = self.units.get_mut(id) else { return };
        let well = answer.is_ok();
        unit.reason = answer.err();
        self.feed(id, Event::Probed { well });
        self.watch_asked(id);
    }

    /// A program that asks how a unit is has ended.
    pub(super) fn helper_ended(&mut self, id: Id, pid: i32, end: End) {
        let unit = &mut self.units[id];
        let Some(helper) = unit.helper.take_if(|helper| helper.pid == pid) else { return };
        self.timers.set(id, unit);
        let said = self.last_line(*helper);
        let answer = match end {
            End::Status(0) => Ok(()),
            _ => Err(format!("its check {}{said}", words::how(end))),
        };
        self.answer(id, answer);
    }

    /// A program that asks how a unit is prints something, or nothing more.
    pub(super) fn take_check(&mut self, id: Id) {
        let helper = self.units.get_mut(id).and_then(|unit| unit.helper.as_mut());
        let Some(tail) = helper.and_then(|helper| helper.tail.as_mut()) else { return };
        if tail.read().is_none() {
            // It would be ready for ever.
            let _ = self.events.delete(tail.fd());
        }
    }

    /// What a check has printed last, after what it has come to.
    fn last_line(&self, helper: Helper) -> String {
        let Some(tail) = helper.tail else { return String::new() };
        // Closing alone would leave it in the set while a child has a copy.
        let _ = self.events.delete(tail.fd());
        tail.last_line().map_or_else(String::new, |line| format!(": {line}"))
    }

    /// A program that takes too long is killed, and that is the answer.
    pub(super) fn end_slow_helper(&mut self, id: Id) {
        let now = self.now();
        if self.units[id].helper.as_ref().is_some_and(|helper| helper.late_at <= now) {
            let said = self.end_helper(id);
            self.answer(id, Err(format!("its check took too long{said}")));
        }
    }

    /// Nobody waits for the answer any more. Returns what it has printed last.
    fn end_helper(&mut self, id: Id) -> String {
        let unit = &mut self.units[id];
        let Some(helper) = unit.helper.take() else { return String::new() };
        let _ = signal::send_group(helper.pid, libc::SIGKILL);
        self.timers.set(id, unit);
        self.last_line(*helper)
    }
}
