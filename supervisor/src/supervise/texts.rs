//! What texts name, ports above all, is filled in when it is known: in arguments, variables, probes and files that are made.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kitbag_format::port::Reference;

use crate::endpoint::Endpoint;
use crate::late::{self, Known, Late, Missing, Text};
use crate::probe::{self, Ask};
use crate::spawn::environment;
use crate::state::{Fault, Stage};
use crate::state_folder::{self, PART, share};
use crate::sys::{Errno, errno_of, rights};

use super::Supervisor;
use super::outside::outer_of;
use super::spec::ProgramSpec;
use super::units::Id;

impl Supervisor {
    /// Fills in what of a unit's program is known only now, and makes its files. The arguments, where any is filled in.
    pub(super) fn fill_in(
        &mut self,
        id: Id,
        env: &mut Vec<(OsString, OsString)>,
    ) -> Result<Option<Vec<OsString>>, Fault> {
        let spec = &self.parts[self.units[id].part].spec;
        let (late, files) = (spec.wiring().late.clone(), spec.wiring().files.clone());
        let mut argv = None;
        if let Some(late) = late {
            let mut filled = spec.program.argv.clone();
            if let Err(missing) = late.fill(&self.known(id, &|it| self.find_port(id, it)), &mut filled, env) {
                return Err(self.missing(id, &missing));
            }
            argv = Some(filled);
        }
        for file in &files {
            self.make_file(id, file)?;
        }
        Ok(argv)
    }

    fn known<'a>(&self, id: Id, port: &'a dyn Fn(&Reference) -> Option<String>) -> Known<'a> {
        Known { instance: self.units[id].instance, port }
    }

    pub(super) fn fill(&self, id: Id, text: &Text) -> Result<OsString, Missing> {
        text.fill(&self.known(id, &|it| self.find_port(id, it)))
    }

    /// Those of a unit's variables that have ports in them, as far as these are there.
    pub(super) fn late_variables(&self, id: Id) -> Vec<(OsString, OsString)> {
        let late = self.parts[self.units[id].part].spec.wiring().late.iter();
        let filled = |(name, text): &(OsString, Text)| Some((name.clone(), self.fill(id, text).ok()?));
        late.flat_map(|late| &late.env).filter_map(filled).collect()
    }

    pub(super) fn missing(&mut self, id: Id, missing: &Missing) -> Fault {
        let why = self.why_missing(&missing.0);
        self.trouble(id, Stage::Ports, Errno::ENOENT, why)
    }

    fn why_missing(&self, reference: &Reference) -> String {
        match outer_of(reference).and_then(|key| self.ports.outer(&key)) {
            Some(Err(why)) => why.clone(),
            _ => format!("`${{{reference}}}` has no port now; `status` shows why"),
        }
    }

    fn make_file(&mut self, id: Id, file: &late::File) -> Result<(), Fault> {
        let filled = self.fill(id, &file.to).and_then(|to| Ok((to, self.fill(id, &file.content)?)));
        let (to, content) = filled.map_err(|missing| self.missing(id, &missing))?;
        let to = Path::new(&to);
        self.make_with_its_rights(id, to, &content).map_err(|error| {
            self.trouble(id, Stage::Files, errno_of(&error), format!("write {}: {error}", to.display()))
        })
    }

    /// Makes a file with the rights of the unit's user, who may have put something in its way; root's where nobody can have.
    fn make_with_its_rights(&self, id: Id, to: &Path, content: &OsString) -> io::Result<()> {
        let ids = self.parts[self.units[id].part].spec.setup.ids.as_ref();
        if to.starts_with(&self.state_folder) {
            state_folder::make_again(&self.state_folder)?;
        }
        if let Some(ids) = ids.filter(|ids| self.is_shared && ids.uid != 0) {
            let _rights = rights::borrow(ids)?;
            share::his_folders(&self.state_folder, to, ids.uid)?;
            return write_file(to, content, None);
        }
        if self.is_shared {
            share::roots_folders(&self.state_folder, to)?;
        }
        write_file(to, content, ids.map(|ids| (ids.uid, ids.gid)))
    }

    /// What a reference in a text of this unit stands for now.
    fn find_port(&self, id: Id, reference: &Reference) -> Option<String> {
        let endpoint = match (outer_of(reference), &reference.unit) {
            (Some(key), _) => self.ports.outer(&key)?.as_ref().ok()?.clone(),
            (None, Some(unit)) => self.endpoint(*self.named(unit).ok()?.first()?, &reference.port)?,
            (None, None) => self.endpoint(id, &reference.port)?,
        };
        Some(endpoint.text(reference.part))
    }

    /// Where a unit's port is.
    fn endpoint(&self, id: Id, port: &str) -> Option<Endpoint> {
        let unit = &self.units[id];
        let members = &self.parts[unit.part];
        let at = members.spec.wiring().ports.iter().position(|it| it.name == port)?;
        let spec = &members.spec.wiring().ports[at];
        let held = if spec.socket.is_some() { &members.sockets } else { &unit.ports };
        Some(held.get(at)?.as_ref()?.endpoint(spec, &self.host))
    }

    /// A probe of the network whose address is known only now.
    pub(super) fn late_ask(&self, id: Id, ask: &Ask, address: &Text) -> Result<Ask, String> {
        let text = self.fill(id, address).map_err(|missing| self.why_missing(&missing.0))?;
        let address = probe::parse_address(&text.to_string_lossy()).map_err(|error| error.to_string())?;
        Ok(ask.at(address))
    }

    /// A probe's program of which something is known only now.
    pub(super) fn late_program(
        &self,
        id: Id,
        program: &ProgramSpec,
        late: &Late,
    ) -> Result<ProgramSpec, String> {
        let mut filled = program.clone();
        let env = std::rc::Rc::make_mut(&mut filled.env);
        environment::put(env, &self.units[id].from_files);
        let known = |it: &Reference| self.find_port(id, it);
        late.fill(&self.known(id, &known), &mut filled.argv, env)
            .map_err(|missing| self.why_missing(&missing.0))?;
        Ok(filled)
    }
}

/// Writes a file in one step, for its owner alone.
fn write_file(path: &Path, content: &OsString, owner: Option<(u32, u32)>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let create = |part: PathBuf| {
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        made.map(|file| (file, part))
    };
    // The name that a supervisor that was killed has used too, and another where somebody else has this one.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(format!("{PART}{name}"));
    let _ = fs::remove_file(&part);
    let (mut file, part) = create(part).or_else(|_| create(state_folder::part_in(folder)))?;
    let written = file.write_all(content.as_encoded_bytes());
    let owned = written.and_then(|()| match owner {
        Some((uid, gid)) => std::os::unix::fs::fchown(&file, Some(uid), Some(gid)),
        None => Ok(()),
    });
    owned.and_then(|()| fs::rename(&part, path)).inspect_err(|_| _ = fs::remove_file(&part))
}
