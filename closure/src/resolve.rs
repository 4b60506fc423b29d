//! The walk over all needs: from the files that go in to everything that has to come along.
//!
//! Each program's process is filled as its loader would fill it on the build machine (`process.rs`), then
//! each plug-in that no program needs by name, in a process of the program that is likely to load it. What lies outside
//! of the tree is given a place, files get their search paths, and then every process is filled once more from the
//! bundle alone: what comes out differently is an error now and not on somebody's server.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::rc::Rc;

pub use crate::closure::*;

use crate::facts::{Facts, Kind, Priority, Target};
use crate::lookup::{Folders, Home, Loader, Lookup, can_be_searched};
use crate::placing::{FOLDER, Unit, folder, place};
use crate::process::{Hit, Id, Mark, Process, Unmet};
use crate::replay::{Bundle, Folder};
use crate::search::{Libc, Rules, musl_path_file, usual_interpreter};
use crate::tree::{join, name, parent, relative};

/// Finds all that the members need. What is wrong is in the result; nothing fails on the way.
#[must_use]
pub fn resolve(input: &Input<'_>) -> Closure {
    let mut walk = Walk::new(input);
    walk.programs();
    walk.modules();
    walk.finish()
}

/// A program or module whose needs are known.
struct Run {
    main: Id,
    rules: Rc<Rules>,
    /// The program's interpreter. None for a module, or if it is missing.
    loader: Option<Id>,
    /// For a module: the group whose program loads it, if there is one.
    group: Option<usize>,
    /// The names of its process, for a module those that it brings, and what they lead to.
    names: HashMap<Vec<u8>, Id>,
}

/// Programs that search alike, so that a module is the same in all of them.
struct Group {
    target: Target,
    rules: Rc<Rules>,
    /// The interpreter, whether the list is a RUNPATH, and the list.
    like: (Vec<u8>, bool, Vec<Folders>),
    /// Numbers of runs.
    programs: Vec<usize>,
    /// The first program's process, with what the others have besides. None while it is looked at.
    process: Option<Process>,
}

/// How a file was loaded.
struct Reached {
    /// By whose rules, first.
    rules: Rc<Rules>,
    /// The folders of the tree that were its `$ORIGIN`.
    origins: HashSet<Vec<u8>>,
}

struct Walk<'a> {
    lookup: Lookup<'a>,
    closure: Closure,
    runs: Vec<Run>,
    units: Vec<Unit>,
    groups: Vec<Group>,
    /// glibc's loaders.
    loaders: HashSet<Id>,
    /// What is loaded somewhere.
    reached: HashMap<Id, Reached>,
    /// What needed a file first.
    causes: HashMap<Id, (Id, Link)>,
}

impl<'a> Walk<'a> {
    fn new(input: &'a Input<'a>) -> Self {
        Self {
            lookup: Lookup::new(input),
            closure: Closure::default(),
            runs: Vec::new(),
            units: Vec::new(),
            groups: Vec::new(),
            loaders: HashSet::new(),
            reached: HashMap::new(),
            causes: HashMap::new(),
        }
    }

    fn facts(&self, object: Id) -> Rc<Facts> {
        self.lookup.objects[object].facts.clone()
    }

    fn members(&self, kind: Kind) -> Vec<Id> {
        let members = 0..self.lookup.input.members.len();
        members.filter(|member| self.lookup.objects[*member].facts.kind == kind).collect()
    }

    fn programs(&mut self) {
        for main in self.members(Kind::Program) {
            let facts = self.facts(main);
            let Some(interpreter) = &facts.interpreter else { continue };
            let rules = self.lookup.rules(interpreter, facts.target);
            let mut process = Process::new(rules.libc, facts.target, self.lookup.main(main));
            let loader = self.loader(&mut process, interpreter, &rules);
            process.fill(&mut Loader { lookup: &mut self.lookup, rules: rules.clone(), is_module: false });
            self.note(&process, Mark::default(), &rules, true);
            self.runs.push(Run {
                main,
                rules: rules.clone(),
                loader,
                group: None,
                names: names(&process, 0),
            });
            self.units.push(self.unit(&process, Mark::default()));
            self.join_group(process, &rules, interpreter);
        }
    }

    fn loader(&mut self, process: &mut Process, path: &[u8], rules: &Rc<Rules>) -> Option<Id> {
        match self.lookup.interpreter(path, process.target) {
            Ok(hit) => {
                let object = hit.object;
                if rules.libc == Libc::Glibc {
                    self.loaders.insert(object);
                }
                let finder = Loader { lookup: &mut self.lookup, rules: rules.clone(), is_module: false };
                process.push_loader(hit, name(path), &finder);
                Some(object)
            }
            Err(tried) => {
                let missing = self.missing(process, 0, path, Need::Interpreter, vec![tried]);
                self.closure.missing.push(missing);
                None
            }
        }
    }

    fn join_group(&mut self, process: Process, rules: &Rc<Rules>, interpreter: &[u8]) {
        let (run, target) = (self.runs.len() - 1, process.target);
        let has_runpath = self.facts(self.runs[run].main).runpath.is_some();
        let like = (interpreter.to_vec(), has_runpath, self.lookup.own_folders(&process, rules));
        match self.groups.iter_mut().find(|group| group.target == target && group.like == like) {
            Some(group) => {
                group.process.iter_mut().for_each(|first| first.adopt(&process));
                group.programs.push(run);
            }
            None => self.groups.push(Group {
                target,
                rules: rules.clone(),
                like,
                programs: vec![run],
                process: Some(process),
            }),
        }
    }

    /// Libraries that no program needs by name: plug-ins, extension modules. Those first that no other one needs.
    fn modules(&mut self) {
        let libraries = self.members(Kind::Library);
        let needed: HashSet<Vec<u8>> =
            libraries.iter().flat_map(|member| self.facts(*member).needed.clone()).collect();
        let is_needed = |member: &Id| {
            let object = &self.lookup.objects[*member];
            object.facts.soname.as_ref().is_some_and(|soname| needed.contains(soname))
                || needed.contains(name(object.path()))
        };
        let (later, first): (Vec<Id>, Vec<Id>) = libraries.into_iter().partition(is_needed);
        for module in first.into_iter().chain(later) {
            if !self.reached.contains_key(&module) && self.facts(module).is_dynamic {
                self.module(module);
            }
        }
    }

    /// Loads a module in the first group where nothing is missing; if something is everywhere, in the first one.
    fn module(&mut self, module: Id) {
        let candidates = self.candidates(module);
        let Some(first) = candidates.first().copied() else { return self.alone(module) };
        let complete =
            (candidates.len() > 1).then(|| candidates.into_iter().find(|group| self.suits(module, *group)));
        self.load(module, complete.flatten().unwrap_or(first));
    }

    /// Groups of the module's machine and libc; those first with a program that is near in the tree.
    fn candidates(&self, module: Id) -> Vec<usize> {
        let (facts, path) = (self.facts(module), self.lookup.objects[module].path());
        let libc = Libc::of_library(&facts);
        let fits =
            |group: &Group| group.target == facts.target && libc.is_none_or(|libc| libc == group.rules.libc);
        let common = |run: &usize| {
            let other = self.lookup.objects[self.runs[*run].main].path();
            path.iter().zip(other).take_while(|(one, other)| one == other).count()
        };
        let mut groups: Vec<usize> =
            (0..self.groups.len()).filter(|group| fits(&self.groups[*group])).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(self.groups[*group].programs.iter().map(common).max()));
        groups
    }

    /// True if nothing is missing when a group's program loads a module.
    fn suits(&mut self, module: Id, group: usize) -> bool {
        self.visit(module, group, |_, process, mark| process.unmet.len() == mark.unmet).unwrap_or(false)
    }

    fn load(&mut self, module: Id, group: usize) {
        let rules = self.groups[group].rules.clone();
        self.visit(module, group, |walk, process, mark| {
            walk.note(process, mark, &rules, false);
            walk.units.push(walk.unit(process, mark));
            let names = names(process, mark.loaded);
            walk.runs.push(Run { main: module, rules, loader: None, group: Some(group), names });
        });
    }

    /// Fills a group's process with a module and its needs, looks at it, and forgets them.
    fn visit<T>(
        &mut self,
        module: Id,
        group: usize,
        look: impl FnOnce(&mut Self, &Process, Mark) -> T,
    ) -> Option<T> {
        let (rules, main) = (self.groups[group].rules.clone(), self.lookup.main(module));
        let mut process = self.groups[group].process.take()?;
        let mark = process.mark();
        process.push(main, Vec::new(), Some(0));
        process.fill(&mut Loader { lookup: &mut self.lookup, rules, is_module: true });
        let seen = look(self, &process, mark);
        process.back_to(mark);
        self.groups[group].process = Some(process);
        Some(seen)
    }

    /// A module that no program of the tree could load: by the rules of the libc that it needs.
    fn alone(&mut self, module: Id) {
        let facts = self.facts(module);
        let libc = Libc::of_library(&facts).unwrap_or(Libc::Glibc);
        let rules = self.lookup.rules(&usual_interpreter(libc, facts.target), facts.target);
        let mut process = Process::new(libc, facts.target, self.lookup.main(module));
        process.fill(&mut Loader { lookup: &mut self.lookup, rules: rules.clone(), is_module: true });
        self.note(&process, Mark::default(), &rules, false);
        self.runs.push(Run { main: module, rules, loader: None, group: None, names: names(&process, 0) });
        self.units.push(self.unit(&process, Mark::default()));
    }

    /// What has to be findable from outside of the tree for what was loaded and asked for since.
    fn unit(&self, process: &Process, mark: Mark) -> Unit {
        let asked = process.asked[mark.asked..].iter();
        let wants = asked.filter(|(name, object)| {
            self.lookup.objects[*object].is_outside() && (!name.contains(&b'/') || is_variant(name))
        });
        Unit { wants: wants.cloned().collect(), names: names(process, mark.loaded), layer: None }
    }

    /// Takes down what is to be said of a process and of what came into it since.
    fn note(&mut self, process: &Process, since: Mark, rules: &Rc<Rules>, is_program: bool) {
        for number in since.loaded..process.loaded.len() {
            let loaded = &process.loaded[number];
            let reached = self
                .reached
                .entry(loaded.hit.object)
                .or_insert_with(|| Reached { rules: rules.clone(), origins: HashSet::new() });
            reached.origins.extend(loaded.hit.tree_origin.clone());
            if let Some(parent) = loaded.parent.filter(|_| !loaded.name.is_empty()) {
                let cause = || (process.loaded[parent].hit.object, self.link(process, parent, number));
                let cause = (!self.causes.contains_key(&loaded.hit.object)).then(cause);
                self.causes.extend(cause.map(|cause| (loaded.hit.object, cause)));
            }
            self.note_paths(process, number);
            if process.libc == Libc::Glibc {
                self.note_versions(process, number);
            }
            self.note_copies(process, number, rules, is_program);
        }
        self.note_sonames(process, since.loaded);
        for unmet in &process.unmet[since.unmet..] {
            self.note_unmet(process, unmet);
        }
        for (asker, name, library) in &process.assumed[since.assumed..] {
            let (needed_by, path) =
                (self.shown(&process.loaded[*asker].hit), self.lookup.objects[*library].path().to_vec());
            let remark = Remark::LoadedBefore { needed_by, name: name.clone(), path };
            if !self.closure.remarks.contains(&remark) {
                self.closure.remarks.push(remark);
            }
        }
    }

    fn note_unmet(&mut self, process: &Process, unmet: &Unmet) {
        let need = unmet.dlopen.clone().map_or(Need::Library, Need::Dlopen);
        let is_required = unmet.dlopen.as_ref().is_none_or(|dlopen| dlopen.priority == Priority::Required);
        let missing = self.missing(process, unmet.asker, &unmet.name, need, unmet.tried.clone());
        let same = |other: &Missing| other.name == missing.name && other.needed_by == missing.needed_by;
        let remarked = |remark: &Remark| matches!(remark, Remark::NotThere(other) if same(other));
        if is_required && !self.closure.missing.iter().any(same) {
            self.closure.missing.push(missing);
        } else if !is_required && !self.closure.remarks.iter().any(remarked) {
            self.closure.remarks.push(Remark::NotThere(missing));
        }
    }

    fn missing(
        &self,
        process: &Process,
        asker: usize,
        name: &[u8],
        need: Need,
        tried: Vec<Tried>,
    ) -> Missing {
        let needed_by = self.shown(&process.loaded[asker].hit);
        let chain = self.chain(process, asker);
        Missing { name: name.to_vec(), need, needed_by, chain, tried, target: process.target }
    }

    fn note_paths(&mut self, process: &Process, number: usize) {
        let hit = &process.loaded[number].hit;
        for name in self.facts(hit.object).needed.iter().filter(|name| name.contains(&b'/')) {
            let conflict = Conflict::NeededByPath { needed_by: self.shown(hit), name: name.clone() };
            if !self.closure.conflicts.contains(&conflict) {
                self.closure.conflicts.push(conflict);
            }
        }
    }

    /// glibc's `_dl_check_map_versions`: a library without any versions satisfies all.
    fn note_versions(&mut self, process: &Process, number: usize) {
        for need in &self.facts(process.loaded[number].hit.object).version_needs {
            let Some(library) = process.names.get(&need.library) else { continue };
            let hit = &process.loaded[*library].hit;
            let facts = self.facts(hit.object);
            let has = |version: &&Vec<u8>| facts.versions.is_empty() || facts.versions.contains(version);
            for version in need.versions.iter().filter(|version| !has(version)) {
                let needed_by = self.shown(&process.loaded[number].hit);
                let (chain, file) = (self.chain(process, number), self.shown(hit));
                let unmet = UnmetVersion {
                    needed_by,
                    chain,
                    version: version.clone(),
                    library: need.library.clone(),
                    file,
                };
                let same = |other: &UnmetVersion| {
                    (&other.needed_by, &other.version, &other.file)
                        == (&unmet.needed_by, &unmet.version, &unmet.file)
                };
                if !self.closure.unmet_versions.iter().any(same) {
                    self.closure.unmet_versions.push(unmet);
                }
            }
        }
    }

    /// Two files of one soname in a process: both are loaded, as they were asked for by different names.
    fn note_sonames(&mut self, process: &Process, first: usize) {
        let mut sonames = HashMap::new();
        for number in (0..process.loaded.len()).filter(|number| !process.loaded[*number].is_variant) {
            let Some(soname) = self.facts(process.loaded[number].hit.object).soname.clone() else { continue };
            let other = *sonames.entry(soname.clone()).or_insert(number);
            if number >= first.max(1) && other != number && !self.is_same(process, other, number) {
                let (first, second) = (self.chain(process, other), self.chain(process, number));
                self.conflict(Conflict::TwoOfOneName { name: soname, first, second });
            }
        }
    }

    /// A file whose own search path leads to another library than the one that its process has under that name.
    fn note_copies(&mut self, process: &Process, number: usize, rules: &Rules, is_program: bool) {
        let facts = self.facts(process.loaded[number].hit.object);
        if facts.own_path().is_empty() {
            return;
        }
        for name in facts.needed.iter().filter(|name| !name.contains(&b'/')) {
            let Some(used) = process.names.get(name).copied() else { continue };
            let Some(hit) = self.lookup.by_own_list(process, number, name, rules) else { continue };
            if hit.object == process.loaded[used].hit.object
                || self.is_same_file(hit.object, process.loaded[used].hit.object)
            {
                continue;
            }
            let mut other = self.chain(process, number);
            let (from, to) = (self.shown(&process.loaded[number].hit), self.shown(&hit));
            other.push(Link { from, name: name.clone(), to });
            let (name, used) = (name.clone(), self.chain(process, used));
            if is_program {
                self.conflict(Conflict::TwoOfOneName { name, first: used, second: other });
            } else {
                self.closure.remarks.push(Remark::OtherCopy { name, used, unused: other });
            }
        }
    }

    fn conflict(&mut self, conflict: Conflict) {
        if !self.closure.conflicts.contains(&conflict) {
            self.closure.conflicts.push(conflict);
        }
    }

    fn is_same(&self, process: &Process, one: usize, other: usize) -> bool {
        self.is_same_file(process.loaded[one].hit.object, process.loaded[other].hit.object)
    }

    /// True for copies of one file, which do no harm to each other.
    fn is_same_file(&self, one: Id, other: Id) -> bool {
        let (one, other) = (&self.lookup.objects[one], &self.lookup.objects[other]);
        let length = |path: &Path| fs::metadata(path).map(|metadata| metadata.len()).ok();
        let (one, other, alike) = (one.host(), other.host(), one.facts == other.facts);
        alike && length(one) == length(other) && fs::read(one).ok() == fs::read(other).ok()
    }

    /// A file for people: a member's path in the tree, else where it was found on the root.
    fn shown(&self, hit: &Hit) -> Vec<u8> {
        let object = &self.lookup.objects[hit.object];
        if object.is_outside() { hit.found.clone() } else { object.path().to_vec() }
    }

    /// How a file came into a process, from the program or module on.
    fn chain(&self, process: &Process, to: usize) -> Vec<Link> {
        let chain = process.chain(to);
        let start = chain.iter().rposition(|number| process.loaded[*number].name.is_empty()).unwrap_or(0);
        chain[start..].windows(2).map(|pair| self.link(process, pair[0], pair[1])).collect()
    }

    fn link(&self, process: &Process, from: usize, to: usize) -> Link {
        let (from, to) = (&process.loaded[from], &process.loaded[to]);
        Link { from: self.shown(&from.hit), name: to.name.clone(), to: self.shown(&to.hit) }
    }

    fn finish(mut self) -> Closure {
        let placed = place(&mut self.units);
        let lists = self.lists();
        self.requests(&placed, &lists);
        self.replay(&placed, &lists);
        self.additions(placed);
        let closure = &mut self.closure;
        closure
            .missing
            .sort_by(|one, other| (&one.needed_by, &one.name).cmp(&(&other.needed_by, &other.name)));
        closure
            .unmet_versions
            .sort_by(|one, other| (&one.needed_by, &one.version).cmp(&(&other.needed_by, &other.version)));
        self.closure
    }

    /// The search path of each member that gets one.
    fn lists(&self) -> HashMap<Id, Vec<Folder>> {
        let layers: HashMap<Id, usize> = self
            .runs
            .iter()
            .zip(&self.units)
            .filter_map(|(run, unit)| Some((run.main, unit.layer?)))
            .collect();
        let members = 0..self.lookup.input.members.len();
        members.map(|member| (member, self.list(member, layers.get(&member).copied()))).collect()
    }

    fn list(&self, member: Id, layer: Option<usize>) -> Vec<Folder> {
        let Some(Reached { rules, origins }) = self.reached.get(&member) else { return Vec::new() };
        let object = &self.lookup.objects[member];
        let home = parent(object.path());
        let is_program = object.facts.kind == Kind::Program;
        let tree = self.lookup.input.tree;
        let found = |origin: &[u8], entry: &[u8]| tree.find(&rules.expand_in_tree(entry, origin)?);
        let own = object.facts.own_path().iter().filter_map(|entry| {
            if is_program {
                return found(home, entry).map(Folder::Tree);
            }
            let leads = |origin: &Vec<u8>| found(origin, entry).is_some();
            let rest = rules.from_origin(entry)?;
            (found(home, entry).is_some() || origins.iter().any(leads)).then_some(Folder::Origin(rest))
        });
        let spelled = |folder: Vec<u8>| match (is_program, relative(home, &folder)) {
            (true, _) => Folder::Tree(folder),
            (false, way) if way.is_empty() => Folder::Origin(way),
            (false, way) => Folder::Origin([b"/", way.as_slice()].concat()),
        };
        let pointed = self.lookup.pointed.get(&member).into_iter().flatten().cloned();
        let added = layer.map(folder).into_iter().chain(is_program.then(|| FOLDER.to_vec()));
        let mut list = Vec::new();
        for folder in own.chain(pointed.chain(added).map(spelled)) {
            let (Folder::Tree(text) | Folder::Origin(text)) = &folder;
            // What has to be found in another one is missed when processes are filled anew.
            if can_be_searched(text) && !list.contains(&folder) {
                list.push(folder);
            }
        }
        list
    }

    fn requests(&mut self, placed: &BTreeMap<Vec<u8>, Id>, lists: &HashMap<Id, Vec<Folder>>) {
        let spell = |folder: &Folder| match folder {
            Folder::Tree(path) => in_tree(path),
            Folder::Origin(rest) => [b"$ORIGIN", rest.as_slice()].concat(),
        };
        let loaders: HashMap<Id, usize> =
            self.runs.iter().enumerate().map(|(number, run)| (run.main, number)).collect();
        for member in 0..self.lookup.input.members.len() {
            let object = &self.lookup.objects[member];
            let rpath = lists.get(&member).into_iter().flatten().map(spell).collect();
            let run = loaders.get(&member).map(|run| (&self.runs[*run], &self.units[*run]));
            let interpreter = run.and_then(|(run, unit)| self.loader_path(run, unit, placed));
            let is_loader = self.loaders.contains(&member);
            let request = Request { interpreter, rpath, is_loader, ..Request::default() };
            let changes = !object.facts.needed.is_empty() || !object.facts.own_path().is_empty();
            let is_ours =
                matches!(object.facts.kind, Kind::Program | Kind::Library) && object.facts.is_dynamic;
            if is_ours && (changes || request != Request::default()) {
                self.closure.requests.insert(object.path().to_vec(), request);
            }
        }
    }

    fn loader_path(&self, run: &Run, unit: &Unit, placed: &BTreeMap<Vec<u8>, Id>) -> Option<Vec<u8>> {
        let loader = run.loader?;
        if let Home::Tree { path, .. } = &self.lookup.objects[loader].home {
            return Some(in_tree(path));
        }
        let (name, _) = unit.wants.iter().find(|(_, object)| *object == loader)?;
        let mut paths = unit.layer.into_iter().chain([0]).map(|layer| join(&folder(layer), name));
        paths.find(|path| placed.get(path) == Some(&loader)).map(|path| in_tree(&path))
    }

    fn additions(&mut self, placed: BTreeMap<Vec<u8>, Id>) {
        let mut paths: HashMap<Id, Vec<u8>> = HashMap::new();
        for (path, id) in placed {
            if let Some(first) = paths.get(&id) {
                let way = relative(parent(&path), parent(first));
                self.closure.additions.insert(path, Addition::Link(join(&way, name(first))));
                continue;
            }
            let object = &self.lookup.objects[id];
            let Home::Outside(found) = &object.home else { continue };
            let is_loader = self.loaders.contains(&id);
            if is_loader || !object.facts.needed.is_empty() || !object.facts.own_path().is_empty() {
                let request = Request { is_loader, ..Request::default() };
                self.closure.requests.insert(path.clone(), request);
            }
            let facts = Box::new((*object.facts).clone());
            let file = Addition::File { source: found.host.clone(), origin: found.path.clone(), facts };
            self.closure.additions.insert(path.clone(), file);
            paths.insert(id, path);
        }
        self.path_files();
        let path =
            |id: Id| paths.get(&id).cloned().unwrap_or_else(|| self.lookup.objects[id].path().to_vec());
        let causes = self.causes.iter();
        self.closure.causes = causes
            .map(|(id, (from, link))| (path(*id), Cause { from: path(*from), link: link.clone() }))
            .collect();
    }

    /// An empty path file for each musl loader, where it looks for one, unless the tree has one there.
    fn path_files(&mut self) {
        let loaders = self.closure.requests.values().filter_map(|request| request.interpreter.as_ref());
        let musl = loaders.filter(|path| Libc::of_interpreter(path) == Libc::Musl);
        let files: Vec<Vec<u8>> = musl.filter_map(|path| out_of(&musl_path_file(path))).collect();
        let new = files.into_iter().filter(|path| self.lookup.input.tree.find(path).is_none());
        self.closure.additions.extend(new.map(|path| (path, Addition::Empty)));
    }

    /// Fills every process anew, in the bundle.
    fn replay(&mut self, placed: &BTreeMap<Vec<u8>, Id>, lists: &HashMap<Id, Vec<Folder>>) {
        let members = 0..self.lookup.input.members.len();
        let members = members.map(|member| (self.lookup.objects[member].path().to_vec(), member)).collect();
        let mut bundle = Bundle { lookup: &self.lookup, added: placed, members: &members, lists };
        let (mut programs, mut different, mut loads) = (HashMap::new(), Vec::new(), Vec::new());
        for (number, run) in self.runs.iter().enumerate() {
            let loader = self.loader_path(run, &self.units[number], placed);
            match run.group.and_then(|group| programs.get_mut(&self.groups[group].programs[0])) {
                Some(process) => different.extend(self.replay_module(run, process, &mut bundle)),
                None => {
                    let Some(path) = loader.as_deref().and_then(out_of) else { continue };
                    let mut process =
                        Process::new(run.rules.libc, self.facts(run.main).target, self.in_bundle(run.main));
                    if let Some(hit) = bundle.hit(&path) {
                        process.push_loader(hit, name(&path), &bundle);
                    }
                    process.needs(&mut bundle);
                    loads.push(self.loads(run, &process));
                    process.fill(&mut bundle);
                    different.extend(self.differences(run, &process));
                    programs.insert(number, process);
                }
            }
        }
        self.closure.loads.extend(loads);
        self.closure.conflicts.extend(different);
    }

    fn replay_module(&self, run: &Run, process: &mut Process, bundle: &mut Bundle<'_, '_>) -> Vec<Conflict> {
        let mark = process.mark();
        process.push(self.in_bundle(run.main), Vec::new(), Some(0));
        process.fill(bundle);
        let different = self.differences(run, process);
        process.back_to(mark);
        different
    }

    /// A member as the first file of a process in the bundle.
    fn in_bundle(&self, member: Id) -> Hit {
        Hit { root_origin: None, ..self.lookup.main(member) }
    }

    fn loads(&self, run: &Run, process: &Process) -> (Vec<u8>, Vec<Vec<u8>>) {
        let loaded = process.loaded[1..].iter().filter(|loaded| !loaded.is_variant);
        let path = self.lookup.objects[run.main].path().to_vec();
        (path, loaded.map(|loaded| loaded.hit.found.clone()).collect())
    }

    fn differences(&self, run: &Run, process: &Process) -> Vec<Conflict> {
        let found = |name: &Vec<u8>| process.names.get(name).map(|number| process.loaded[*number].hit.object);
        let path = |object: Id| self.lookup.objects[object].path().to_vec();
        let names: BTreeMap<_, _> = run.names.iter().filter(|(name, _)| !name.contains(&b'/')).collect();
        let different = names.into_iter().filter(|(name, object)| found(name) != Some(**object));
        let conflict = |(name, object): (&Vec<u8>, &Id)| Conflict::Different {
            program: path(run.main),
            name: name.clone(),
            wanted: path(*object),
            found: found(name).map(path),
        };
        different.map(conflict).collect()
    }
}

/// True for the name of a file for processors of a certain level.
fn is_variant(name: &[u8]) -> bool {
    name.starts_with(b"glibc-hwcaps/")
}

/// The names of a process that lead to files loaded since.
fn names(process: &Process, first: usize) -> HashMap<Vec<u8>, Id> {
    let names = process.names.iter().filter(|(_, number)| **number >= first);
    names.map(|(name, number)| (name.clone(), process.loaded[*number].hit.object)).collect()
}

/// A place in the tree, as it goes into a file.
fn in_tree(path: &[u8]) -> Vec<u8> {
    if path.is_empty() { TREE.into() } else { [TREE.as_bytes(), b"/", path].concat() }
}

/// The place in the tree that a text in a file means. None if it means another one.
fn out_of(text: &[u8]) -> Option<Vec<u8>> {
    text.strip_prefix(TREE.as_bytes())?.strip_prefix(b"/").map(<[u8]>::to_vec)
}
