//! What each program of a bundle loads from it, and what it would need from the host: found in the tree alone, by the
//! search paths that the files have. Sources: ld.so(8), glibc's `elf/dl-load.c`, musl's `ldso/dynlink.c`.

use std::collections::{BTreeSet, HashMap, HashSet};

use kitbag_closure::facts::{Facts, Kind, Target};
use kitbag_closure::search::Libc;
use kitbag_closure::tree::{Listing, Tree};
use kitbag_format::slots::TREE;

use super::limits::Version;
use super::survey::Object;

/// Who starts a program, and loads its libraries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loader {
    /// The kernel alone: it is static.
    None,
    /// A file of the bundle, by its path in the tree.
    Bundle(Vec<u8>),
    /// A file that should be in the bundle, and is not.
    Absent(Vec<u8>),
    /// A file of the host. `None`, for modules: whichever program of the host loads them.
    Host(Option<Vec<u8>>),
}

/// A program with what it loads; or a module that no program of the bundle needs, which something opens as it runs.
#[derive(Debug)]
pub struct Process {
    /// Number of the program, or of the module.
    pub main: usize,
    /// Who starts it.
    pub loader: Loader,
    /// Numbers of all objects in it, its own first.
    pub loaded: Vec<usize>,
    /// Needs that nothing in the bundle meets: who has them, and the name.
    pub unmet: BTreeSet<(usize, Vec<u8>)>,
}

impl Process {
    /// True if it takes its loader and libraries from the host.
    pub const fn is_hosts(&self) -> bool {
        matches!(self.loader, Loader::Host(_))
    }

    /// Whose C library it has. None for static programs.
    pub fn libc(&self, objects: &[Object]) -> Option<Libc> {
        match &self.loader {
            Loader::None => None,
            Loader::Bundle(path) | Loader::Absent(path) | Loader::Host(Some(path)) => {
                Some(Libc::of_interpreter(path))
            }
            Loader::Host(None) => Libc::of_library(&objects[self.main].facts).or(Some(Libc::Glibc)),
        }
    }

    /// The version of the glibc that it loads from the bundle.
    pub fn own_glibc(&self, objects: &[Object]) -> Option<Version> {
        let is_libc =
            |facts: &&Facts| facts.soname.as_deref().is_some_and(|name| name.starts_with(b"libc.so."));
        let libc = self.loaded.iter().map(|number| &objects[*number].facts).find(is_libc)?;
        libc.versions.iter().filter_map(|version| Version::of_glibc(version)).max()
    }

    /// The least version of glibc that it asks of the host, and whose need that is.
    pub fn hosts_glibc(&self, objects: &[Object]) -> Option<(Version, usize)> {
        let needs = self.loaded.iter().flat_map(|number| {
            let needs = &objects[*number].facts.version_needs;
            needs.iter().flat_map(|need| &need.versions).map(move |version| (version, *number))
        });
        needs
            .filter_map(|(version, number)| Some((Version::of_glibc(version)?, number)))
            .max_by_key(|found| found.0)
    }
}

/// True for the names of glibc's own libraries, and of the loaders: they come with any glibc.
pub fn is_libc(name: &[u8]) -> bool {
    let glibc: [&[u8]; 12] = [
        b"libc.so.",
        b"libm.so.",
        b"libpthread.so.",
        b"libdl.so.",
        b"librt.so.",
        b"libutil.so.",
        b"libresolv.so.",
        b"libanl.so.",
        b"libmvec.so.",
        b"libBrokenLocale.so.",
        b"libthread_db.so.",
        b"ld-linux",
    ];
    glibc.iter().any(|begin| name.starts_with(begin)) || name.starts_with(b"ld64.so.") || name == b"ld.so.1"
}

/// The loader of the programs that may load a module, the host's if it is any one's; and the folders they search.
type Around = (Loader, BTreeSet<Vec<u8>>);

/// The tree for lookups.
pub struct World<'a> {
    objects: &'a [Object],
    listing: &'a Listing,
    numbers: HashMap<&'a [u8], usize>,
    /// Folders that every program searches, because its environment says so.
    given: Vec<Vec<u8>>,
}

impl<'a> World<'a> {
    /// `given` are folders of the tree that `LD_LIBRARY_PATH` names.
    pub fn new(objects: &'a [Object], listing: &'a Listing, given: Vec<Vec<u8>>) -> Self {
        let numbers =
            objects.iter().enumerate().map(|(number, object)| (object.path.as_slice(), number)).collect();
        Self { objects, listing, numbers, given }
    }

    /// Every process of the bundle: first its programs, then the modules that none of them needs.
    pub fn processes(&self) -> Vec<Process> {
        let mains = (0..self.objects.len()).filter(|number| self.objects[*number].is_program());
        let mut processes: Vec<Process> = mains.map(|number| self.process(number)).collect();
        let needed: HashSet<usize> =
            processes.iter().flat_map(|process| process.loaded.iter().copied()).collect();
        let is_module = |number: &usize| {
            let object = &self.objects[*number];
            let has_needs = object.facts.kind == Kind::Library && !object.facts.needed.is_empty();
            has_needs && !needed.contains(number) && !object.is_variant()
        };
        let arounds = self.arounds(&processes);
        let modules = (0..self.objects.len()).filter(is_module);
        processes.extend(modules.map(|number| self.module(number, &arounds)));
        processes
    }

    fn process(&self, main: usize) -> Process {
        let facts = &self.objects[main].facts;
        let loader = match &facts.interpreter {
            None => Loader::None,
            Some(path) => match path.strip_prefix(TREE.as_bytes()).filter(|rest| rest.starts_with(b"/")) {
                None => Loader::Host(Some(path.clone())),
                Some(rest) => {
                    self.listing.find(rest).map_or_else(|| Loader::Absent(rest[1..].to_vec()), Loader::Bundle)
                }
            },
        };
        let mut process = Process { main, loader, loaded: vec![main], unmet: BTreeSet::new() };
        if let Loader::Bundle(path) = &process.loader {
            process.loaded.extend(self.numbers.get(path.as_slice()));
        }
        self.fill(&mut process, &self.inherited(main));
        process
    }

    /// What modules find where they are loaded, for each kind of program in the bundle.
    fn arounds(&self, processes: &[Process]) -> HashMap<Target, Around> {
        let mut arounds: HashMap<Target, Around> = HashMap::new();
        for process in processes.iter().filter(|process| process.loader != Loader::None) {
            let target = self.objects[process.main].facts.target;
            let around = arounds.entry(target).or_insert_with(|| (process.loader.clone(), BTreeSet::new()));
            if process.is_hosts() {
                around.0 = Loader::Host(None);
            }
            around.1.extend(self.inherited(process.main));
        }
        arounds
    }

    /// A module is loaded by some program: by those of the bundle that can load its kind, or else by the host's.
    fn module(&self, main: usize, arounds: &HashMap<Target, Around>) -> Process {
        let around = arounds.get(&self.objects[main].facts.target);
        let loader = around.map_or(Loader::Host(None), |(loader, _)| loader.clone());
        let mut process = Process { main, loader, loaded: vec![main], unmet: BTreeSet::new() };
        let folders: Vec<Vec<u8>> = around.iter().flat_map(|(_, folders)| folders.iter().cloned()).collect();
        self.fill(&mut process, &folders);
        process
    }

    fn fill(&self, process: &mut Process, inherited: &[Vec<u8>]) {
        let libc = process.libc(self.objects).unwrap_or(Libc::Glibc);
        let (mut names, mut next) = (HashSet::new(), 0);
        while let Some(asker) = process.loaded.get(next).copied() {
            next += 1;
            for name in &self.objects[asker].facts.needed {
                if !names.insert(name.as_slice()) || libc.is_loader(name) {
                    continue;
                }
                match self.find(asker, name, inherited) {
                    Some(number) if process.loaded.contains(&number) => {}
                    Some(number) => process.loaded.push(number),
                    None => drop(process.unmet.insert((asker, name.clone()))),
                }
            }
        }
    }

    fn find(&self, asker: usize, name: &[u8], inherited: &[Vec<u8>]) -> Option<usize> {
        let asker = &self.objects[asker];
        let own = folders(asker);
        let found = own.iter().chain(inherited).chain(&self.given).find_map(|folder| {
            let found = self.listing.find(&[folder, b"/".as_slice(), name].concat())?;
            self.numbers.get(found.as_slice()).copied()
        });
        found.filter(|number| self.objects[*number].facts.target == asker.facts.target)
    }

    /// The folders in which a program's libraries look too: DT_RPATH alone is inherited, and musl's RUNPATH.
    fn inherited(&self, main: usize) -> Vec<Vec<u8>> {
        let object = &self.objects[main];
        let musl =
            object.facts.interpreter.as_deref().is_some_and(|path| Libc::of_interpreter(path) == Libc::Musl);
        if musl || object.facts.runpath.is_none() { folders(object) } else { Vec::new() }
    }
}

/// The folders of the tree in an object's own search path.
fn folders(object: &Object) -> Vec<Vec<u8>> {
    let origin =
        object.path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |end| &object.path[..end]);
    let folder = |entry: &Vec<u8>| {
        let below =
            |begin: &str| entry.strip_prefix(begin.as_bytes()).filter(|rest| matches!(rest, [] | [b'/', ..]));
        let from_origin =
            || below("$ORIGIN").or_else(|| below("${ORIGIN}")).map(|rest| [origin, rest].concat());
        below(TREE).map(<[u8]>::to_vec).or_else(from_origin)
    };
    object.facts.own_path().iter().filter_map(folder).collect()
}
