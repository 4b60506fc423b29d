//! The bundle's own starts, before there is a bundle: each process filled from the tree and the additions alone, by the
//! search paths that the files will have.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::facts::Facts;
use crate::lookup::Lookup;
use crate::process::{Finder, Hit, Id, Loaded, Process, Tried, Verdict};
use crate::search::By;
use crate::tree::{join, parent};

/// A folder of a new search path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Folder {
    /// In programs: a path in the tree.
    Tree(Vec<u8>),
    /// In libraries: what follows `$ORIGIN`, with its slash.
    Origin(Vec<u8>),
}

/// The bundle as it will be.
pub(crate) struct Bundle<'b, 'a> {
    pub lookup: &'b Lookup<'a>,
    /// Files by tree path: those that come along.
    pub added: &'b BTreeMap<Vec<u8>, Id>,
    /// Members by tree path.
    pub members: &'b HashMap<Vec<u8>, Id>,
    pub lists: &'b HashMap<Id, Vec<Folder>>,
}

impl Bundle<'_, '_> {
    fn at(&self, path: &[u8]) -> Option<Id> {
        let added = || self.added.get(&plain(path)?).copied();
        added().or_else(|| self.members.get(&self.lookup.input.tree.find(path)?).copied())
    }

    pub(crate) fn hit(&self, path: &[u8]) -> Option<Hit> {
        let (object, tree_origin) = (self.at(path)?, Some(parent(path).to_vec()));
        Some(Hit { object, tree_origin, root_origin: None, found: path.to_vec(), by: By::Rpath })
    }
}

impl Finder for Bundle<'_, '_> {
    fn find(&mut self, process: &Process, asker: usize, name: &[u8]) -> Result<Hit, Vec<Tried>> {
        let mut tried = Vec::new();
        for number in process.chain(asker).into_iter().rev() {
            let hit = &process.loaded[number].hit;
            for folder in self.lists.get(&hit.object).into_iter().flatten() {
                let folder = match folder {
                    Folder::Tree(path) => path.clone(),
                    Folder::Origin(rest) => [hit.tree_origin.as_deref().unwrap_or_default(), rest].concat(),
                };
                let path = join(&folder, name);
                let fits = |hit: &Hit| self.facts(hit.object).target == process.target;
                match self.hit(&path).filter(fits) {
                    Some(hit) => return Ok(hit),
                    None => tried.push(Tried { path, by: By::Rpath, verdict: Verdict::Absent }),
                }
            }
        }
        Err(tried)
    }

    fn facts(&self, object: Id) -> Rc<Facts> {
        self.lookup.objects[object].facts.clone()
    }

    fn assume(&self, _: &Process, _: &[u8]) -> Option<Id> {
        None
    }

    fn variants(&mut self, loaded: &Loaded) -> Vec<(Vec<u8>, Hit)> {
        let levels = join(parent(&loaded.hit.found), b"glibc-hwcaps/");
        let end = [b"/", loaded.name.as_slice()].concat();
        let paths = self.added.range(levels.clone()..).map(|(path, _)| path);
        let paths = paths.take_while(|path| path.starts_with(&levels)).filter(|path| path.ends_with(&end));
        paths
            .filter_map(|path| Some((path.clone(), self.hit(path)?)))
            .filter(|_| !loaded.is_variant)
            .collect()
    }
}

/// A path without `..`, by its text. None if it leads out.
pub(crate) fn plain(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join(&b'/'))
}
