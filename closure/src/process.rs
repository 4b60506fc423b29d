//! One process, filled as a loader fills it: breadth first, each file and each name once.

use std::collections::HashMap;
use std::rc::Rc;

use crate::facts::{Dlopen, Facts, Priority, Target};
use crate::search::{By, Libc};

/// A file, by its number.
pub(crate) type Id = usize;

/// Something that a search came upon.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub object: Id,
    /// The folder that `$ORIGIN` stands for: in the tree, and on the root.
    pub tree_origin: Option<Vec<u8>>,
    pub root_origin: Option<Vec<u8>>,
    /// The path as it was found, for people.
    pub found: Vec<u8>,
    pub by: By,
}

/// A place that a search went to in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// A path in the tree, or an absolute one on the root.
    pub path: Vec<u8>,
    /// Why it was searched.
    pub by: By,
    /// What was there.
    pub verdict: Verdict,
}

/// Why a file is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is none.
    Absent,
    /// It is no ELF file, or cannot be loaded. A loader gives up here.
    NotLoadable(String),
    /// It is for something else. A loader goes on with the next folder.
    Other(Target),
}

/// Where needs are looked up, and what is known of files.
pub(crate) trait Finder {
    fn find(&mut self, process: &Process, asker: usize, name: &[u8]) -> Result<Hit, Vec<Tried>>;
    fn facts(&self, object: Id) -> Rc<Facts>;
    /// A file of the tree that goes by a name which a search has not found, where a program may have loaded it before.
    fn assume(&self, process: &Process, name: &[u8]) -> Option<Id>;
    /// The files that a loader takes instead on processors of a certain level, and their names from the same folder.
    fn variants(&mut self, loaded: &Loaded) -> Vec<(Vec<u8>, Hit)>;
}

/// A file in a process.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub hit: Hit,
    /// The name that was asked for.
    pub name: Vec<u8>,
    /// What asked for it first. None for the program.
    pub parent: Option<usize>,
    /// True if another file stands for it, unless the processor is of a certain level.
    pub is_variant: bool,
}

/// A need that nothing fulfils.
#[derive(Debug, Clone)]
pub(crate) struct Unmet {
    pub asker: usize,
    pub name: Vec<u8>,
    pub tried: Vec<Tried>,
    pub dlopen: Option<Dlopen>,
}

/// How much there was in a process at some time. By default nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mark {
    pub loaded: usize,
    pub asked: usize,
    pub unmet: usize,
    pub assumed: usize,
}

/// The files of one process, in load order, the program first.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub libc: Libc,
    pub target: Target,
    pub loaded: Vec<Loaded>,
    pub names: HashMap<Vec<u8>, usize>,
    places: HashMap<Id, usize>,
    /// Names that a search was made for, and what it came upon.
    pub asked: Vec<(Vec<u8>, Id)>,
    pub unmet: Vec<Unmet>,
    /// Who asked for what that has to be loaded before.
    pub assumed: Vec<(usize, Vec<u8>, Id)>,
    /// The file whose needs, and the one whose notes, come next.
    next: usize,
    opened: usize,
}

impl Process {
    pub(crate) fn new(libc: Libc, target: Target, main: Hit) -> Self {
        let mut process = Self {
            libc,
            target,
            loaded: Vec::new(),
            names: HashMap::new(),
            places: HashMap::new(),
            asked: Vec::new(),
            unmet: Vec::new(),
            assumed: Vec::new(),
            next: 0,
            opened: 0,
        };
        process.push(main, Vec::new(), None);
        process
    }

    /// Adds a file. Returns its number in the process.
    pub(crate) fn push(&mut self, hit: Hit, name: Vec<u8>, parent: Option<usize>) -> usize {
        let number = self.loaded.len();
        self.places.insert(hit.object, number);
        self.loaded.push(Loaded { hit, name, parent, is_variant: false });
        number
    }

    /// Adds the loader, which the kernel puts there. It answers to its file name, which is what is asked for it.
    pub(crate) fn push_loader(&mut self, hit: Hit, name: &[u8], finder: &dyn Finder) {
        self.asked.push((name.to_vec(), hit.object));
        let number = self.push(hit, name.to_vec(), Some(0));
        self.names.insert(name.to_vec(), number);
        self.answer_to_soname(number, finder);
    }

    /// Loads all that is needed, then what is dlopen'ed by its own word, with its needs.
    pub(crate) fn fill(&mut self, finder: &mut dyn Finder) {
        self.needs(finder);
        while self.opened < self.loaded.len() {
            self.dlopens(self.opened, finder);
            self.needs(finder);
            self.opened += 1;
        }
    }

    /// Loads all that is needed (glibc's `_dl_map_object_deps`, musl's `load_deps`).
    pub(crate) fn needs(&mut self, finder: &mut dyn Finder) {
        while self.next < self.loaded.len() {
            let asker = self.next;
            self.next += 1;
            self.variants(asker, finder);
            for name in &finder.facts(self.loaded[asker].hit.object).needed {
                if let Err(tried) = self.provide(asker, name, finder) {
                    self.unmet.push(Unmet { asker, name: name.clone(), tried, dlopen: None });
                }
            }
        }
    }

    fn dlopens(&mut self, asker: usize, finder: &mut dyn Finder) {
        for dlopen in &finder.facts(self.loaded[asker].hit.object).dlopen {
            let Some(first) = dlopen.sonames.first() else { continue };
            if dlopen.priority == Priority::Suggested {
                continue;
            }
            let results = dlopen.sonames.iter().map(|name| self.provide(asker, name.as_bytes(), finder));
            let results: Result<(), Vec<Tried>> = first_good(results);
            if let Err(tried) = results {
                let (name, dlopen) = (first.clone().into_bytes(), Some(dlopen.clone()));
                self.unmet.push(Unmet { asker, name, tried, dlopen });
            }
        }
    }

    fn provide(&mut self, asker: usize, name: &[u8], finder: &mut dyn Finder) -> Result<(), Vec<Tried>> {
        if self.names.contains_key(name) || self.libc.is_loader(name) {
            return Ok(());
        }
        let hit = match finder.find(self, asker, name) {
            Ok(hit) => hit,
            Err(tried) => {
                let library = finder.assume(self, name).ok_or(tried)?;
                self.assumed.push((asker, name.to_vec(), library));
                return Ok(());
            }
        };
        self.asked.push((name.to_vec(), hit.object));
        let known = self.places.get(&hit.object).copied();
        let number = known.unwrap_or_else(|| self.push(hit, name.to_vec(), Some(asker)));
        self.names.insert(name.to_vec(), number);
        self.answer_to_soname(number, finder);
        Ok(())
    }

    /// glibc compares a wanted name with sonames too, musl does not.
    fn answer_to_soname(&mut self, number: usize, finder: &dyn Finder) {
        let facts = finder.facts(self.loaded[number].hit.object);
        if let (Libc::Glibc, Some(soname)) = (self.libc, &facts.soname) {
            self.names.entry(soname.clone()).or_insert(number);
        }
    }

    fn variants(&mut self, of: usize, finder: &mut dyn Finder) {
        for (name, hit) in finder.variants(&self.loaded[of]) {
            self.asked.push((name.clone(), hit.object));
            let number = self.push(hit, name, self.loaded[of].parent);
            self.loaded[number].is_variant = true;
        }
    }

    /// How much there is now, so that [`Process::back_to`] can forget what comes.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            loaded: self.loaded.len(),
            asked: self.asked.len(),
            unmet: self.unmet.len(),
            assumed: self.assumed.len(),
        }
    }

    pub(crate) fn back_to(&mut self, mark: Mark) {
        self.loaded.truncate(mark.loaded);
        self.asked.truncate(mark.asked);
        self.unmet.truncate(mark.unmet);
        self.assumed.truncate(mark.assumed);
        (self.next, self.opened) = (mark.loaded, mark.loaded);
        self.names.retain(|_, number| *number < mark.loaded);
        self.places.retain(|_, number| *number < mark.loaded);
    }

    /// The chain that led to a file, from the program on.
    pub(crate) fn chain(&self, to: usize) -> Vec<usize> {
        let mut chain = vec![to];
        while let Some(parent) = self.loaded[chain[chain.len() - 1]].parent {
            chain.push(parent);
        }
        chain.reverse();
        chain
    }

    /// Also has what another process has, under names that are free here.
    pub(crate) fn adopt(&mut self, other: &Self) {
        let mut names: Vec<_> =
            other.names.iter().filter(|(name, _)| !self.names.contains_key(*name)).collect();
        names.sort_unstable();
        for (name, number) in names {
            let loaded = &other.loaded[*number];
            let known = self.places.get(&loaded.hit.object).copied();
            let number = known.unwrap_or_else(|| self.push(loaded.hit.clone(), loaded.name.clone(), Some(0)));
            self.names.insert(name.clone(), number);
        }
        (self.next, self.opened) = (self.loaded.len(), self.loaded.len());
    }
}

/// The first success, else all failures.
fn first_good(results: impl Iterator<Item = Result<(), Vec<Tried>>>) -> Result<(), Vec<Tried>> {
    let mut all = Vec::new();
    for result in results {
        match result {
            Ok(()) => return Ok(()),
            Err(tried) => all.extend(tried),
        }
    }
    Err(all)
}
