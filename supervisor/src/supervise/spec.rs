//! What a service or task is when it is started: every template filled in, every name a number.

use std::ffi::OsString;
use std::path::Path;
use std::rc::Rc;

use kitbag_format::port::{Reference, Socket};
use kitbag_format::service::Overlap;

use crate::late::{self, Late};
use crate::ports::lease::{Listen, Net};
use crate::ports::range::Range;
use crate::probe::Ask;
use crate::sandbox::{Connect, Paths};
use crate::spawn::cgroup::Limits;
use crate::spawn::environment::EnvFiles;
use crate::spawn::{Program, Setup};
use crate::state::{Ms, Rules};
use crate::time::cron::Expression;
use crate::time::zone::Zone;

/// A service, or a task.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// Its name, which stands before each line that it prints.
    pub name: String,
    /// What is started.
    pub program: ProgramSpec,
    /// What connects it with others, if anything does: most services have none.
    pub wiring: Option<Box<Wiring>>,
    /// How it is treated.
    pub rules: Rc<Rules>,
    /// The signal that asks it to stop; see [`super::signal_number`].
    pub stop_signal: i32,
    /// The signal for a process that hangs.
    pub abort_signal: i32,
    /// Names of the services and tasks that have to be ready, or done, before it starts.
    pub needs: Vec<String>,
    /// How many of it run.
    pub instances: u32,
    /// It shows that it is ready by a newline on this descriptor.
    pub newline: Option<i32>,
    /// It gets a `NOTIFY_SOCKET`.
    pub notify: bool,
    /// What is asked until it is ready.
    pub ready: Option<Box<Question>>,
    /// What is asked while it is.
    pub health: Option<Box<Question>>,
    /// Its user, limits and the like.
    pub setup: Rc<Setup>,
    /// Its limits on memory and processes.
    pub limits: Limits,
    /// A task has one; a service is started with the bundle.
    pub schedule: Option<Schedule>,
}

impl ServiceSpec {
    /// A service of this name with everything else at its default.
    pub fn new(name: &str, program: ProgramSpec) -> Self {
        Self {
            name: name.to_owned(),
            program,
            wiring: None,
            rules: Rc::default(),
            stop_signal: libc::SIGTERM,
            abort_signal: libc::SIGABRT,
            needs: Vec::new(),
            instances: 1,
            newline: None,
            notify: false,
            ready: None,
            health: None,
            setup: Rc::default(),
            limits: Limits::default(),
            schedule: None,
        }
    }

    /// What connects it with others.
    pub fn wiring(&self) -> &Wiring {
        self.wiring.as_deref().unwrap_or(Wiring::NONE)
    }

    /// The same, to add to it.
    pub fn wiring_mut(&mut self) -> &mut Wiring {
        self.wiring.get_or_insert_default()
    }

    /// How it is treated, to change it.
    pub fn rules_mut(&mut self) -> &mut Rules {
        Rc::make_mut(&mut self.rules)
    }

    /// True if its units inherit sockets.
    pub fn has_sockets(&self) -> bool {
        self.wiring().ports.iter().any(|port| port.socket.is_some())
    }

    /// The ports that its texts name, those that are filled in when a unit starts.
    pub fn references(&self) -> Vec<&Reference> {
        let mut all = Vec::new();
        let wiring = self.wiring();
        if let Some(late) = &wiring.late {
            late.references(&mut all);
        }
        for file in &wiring.files {
            all.extend(file.to.references().chain(file.content.references()));
        }
        for question in self.ready.iter().chain(&self.health) {
            match &question.what {
                What::Late(_, text) => all.extend(text.references()),
                What::LateProgram(_, late) => late.references(&mut all),
                What::Network(_) | What::Program(_) => {}
            }
        }
        all.extend(wiring.connect.iter().flatten().filter_map(Connect::reference));
        all
    }

    /// `service` or `task`.
    pub const fn kind(&self) -> &'static str {
        if self.schedule.is_some() { "task" } else { "service" }
    }
}

/// A program with its arguments, environment and working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramSpec {
    /// Its path; no search in `PATH`.
    pub path: Rc<Path>,
    /// Its arguments, the first one included.
    pub argv: Vec<OsString>,
    /// Its environment, but for what is known when it starts. A thousand services have the same, most of them.
    pub env: Rc<Vec<(OsString, OsString)>>,
    /// Its working directory.
    pub cwd: Rc<Path>,
}

impl ProgramSpec {
    /// As it is started, with this environment and setup.
    pub fn program<'a>(&'a self, env: &'a [(OsString, OsString)], setup: &'a Setup) -> Program<'a> {
        Program { path: &self.path, argv: &self.argv, env, cwd: &self.cwd, setup }
    }
}

/// What connects a service or task with others: its ports, its texts that name ports, and what it may do.
#[derive(Debug, Clone, Default)]
pub struct Wiring {
    /// What of its program is filled in when it starts.
    pub late: Option<Rc<Late>>,
    /// Files that are made before.
    pub files: Vec<late::File>,
    /// Files with variables that are read then.
    pub env_files: Option<EnvFiles>,
    /// Why it cannot be started on this host, whatever happens.
    pub unfit: Option<Box<str>>,
    /// Its ports.
    pub ports: Vec<PortSpec>,
    /// It may bind no TCP port but those and 0.
    pub binds_declared: bool,
    /// The TCP ports that it may connect to; `None`: all.
    pub connect: Option<Vec<Connect>>,
    /// The files that it may use; `None`: all that its user may.
    pub paths: Option<Paths>,
    /// Ports of other bundles that it cannot be started without.
    pub outer: Vec<Reference>,
}

impl Wiring {
    /// No connection.
    const NONE: &Self = &Self {
        late: None,
        files: Vec::new(),
        env_files: None,
        unfit: None,
        ports: Vec::new(),
        binds_declared: false,
        connect: None,
        paths: None,
        outer: Vec::new(),
    };
}

/// A port that a service declares, its templates filled in.
#[derive(Debug, Clone)]
pub struct PortSpec {
    /// Its name.
    pub name: String,
    /// What it is.
    pub place: Where,
    /// The supervisor makes the socket, and the service inherits it.
    pub socket: Option<Socket>,
}

/// What a port is.
#[derive(Debug, Clone)]
pub enum Where {
    /// A number.
    Net {
        /// Of this protocol.
        net: Net,
        /// At these addresses.
        listen: Listen,
        /// Which one.
        wish: Wish,
        /// It stays bound while its service runs.
        hold: bool,
    },
    /// A path.
    Unix,
}

impl Where {
    /// The protocol, if it has numbers.
    pub const fn net(&self) -> Option<Net> {
        match self {
            Self::Net { net, .. } => Some(*net),
            Self::Unix => None,
        }
    }
}

/// Which number a port wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Any.
    Any,
    /// This one.
    Fixed(u16),
    /// This one, or one of these.
    Range(Option<u16>, Range),
}

/// A probe.
#[derive(Debug, Clone)]
pub struct Question {
    /// What is asked.
    pub what: What,
    /// An answer that takes longer is a failure.
    pub timeout: Ms,
}

/// What a probe asks.
#[derive(Debug, Clone)]
pub enum What {
    /// Something on the network.
    Network(Ask),
    /// The same, at an address that is filled in.
    Late(Ask, late::Text),
    /// A program, which answers by its exit status.
    Program(ProgramSpec),
    /// The same, of which this is filled in.
    LateProgram(ProgramSpec, Rc<Late>),
}

/// When a task runs.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// When.
    pub when: When,
    /// What happens when it is due and still runs.
    pub overlap: Overlap,
    /// Run it at the start if it was due while nothing ran.
    pub catch_up: bool,
}

/// When a task is due.
#[derive(Debug, Clone)]
pub enum When {
    /// When the bundle starts.
    Start,
    /// When somebody asks.
    Asked,
    /// By the wall clock.
    Cron(Box<(Expression, Zone)>),
    /// So long after the start, and after each beginning of a run.
    Every(Ms),
}

impl When {
    /// True if it comes due by itself, again and again.
    pub const fn is_repeated(&self) -> bool {
        matches!(self, Self::Cron(_) | Self::Every(_))
    }
}
