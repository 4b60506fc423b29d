//! Needs looked up as they are on the build machine: in the tree where a search path leads there, else on the root.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::rc::Rc;

use crate::facts::{Facts, Kind, Target};
use crate::process::{Finder, Hit, Id, Loaded, Process, Tried, Verdict};
use crate::resolve::Input;
use crate::root::Found;
use crate::search::{By, Libc, Rules};
use crate::tree::{join, name, parent};

/// Where a file comes from.
#[derive(Debug, Clone)]
pub(crate) enum Home {
    /// The user included it: its path in the tree, and on the root if it comes from there.
    Tree { path: Vec<u8>, root: Option<Vec<u8>>, host: PathBuf },
    /// It is on the root: path without links.
    Outside(Found),
}

#[derive(Debug)]
pub(crate) struct Object {
    pub home: Home,
    pub facts: Rc<Facts>,
}

impl Object {
    /// For people, and in chains.
    pub(crate) fn path(&self) -> &[u8] {
        match &self.home {
            Home::Tree { path, .. } => path,
            Home::Outside(found) => &found.path,
        }
    }

    pub(crate) fn host(&self) -> &PathBuf {
        match &self.home {
            Home::Tree { host, .. } => host,
            Home::Outside(found) => &found.host,
        }
    }

    pub(crate) fn is_outside(&self) -> bool {
        matches!(self.home, Home::Outside(_))
    }
}

/// What an entry of a search path means in the tree and on the root.
pub(crate) type Folders = (Option<Vec<u8>>, Option<Vec<u8>>);

/// One step of a search path: a folder of the tree, of the root, or one entry that means both.
struct Step {
    tree: Option<Vec<u8>>,
    root: Option<Vec<u8>>,
    by: By,
}

/// All files seen so far, and the way to more.
pub(crate) struct Lookup<'a> {
    pub input: &'a Input<'a>,
    pub objects: Vec<Object>,
    in_tree: HashMap<Vec<u8>, Id>,
    /// Members by their path on the root.
    included: HashMap<Vec<u8>, Vec<Id>>,
    /// Libraries of the tree by soname, or by file name if they have none.
    named: HashMap<Vec<u8>, Vec<Id>>,
    outside: HashMap<Vec<u8>, Result<Id, Verdict>>,
    rules: HashMap<(Vec<u8>, Target), Rc<Rules>>,
    /// Folders of the tree that an object has to search, as what it finds on the root has been included there.
    pub pointed: BTreeMap<Id, BTreeSet<Vec<u8>>>,
}

impl<'a> Lookup<'a> {
    /// Members are numbered in the order of their paths.
    pub(crate) fn new(input: &'a Input<'a>) -> Self {
        let mut members: Vec<_> = input.members.iter().collect();
        members.sort_by(|one, other| one.path.cmp(&other.path));
        let (mut objects, mut in_tree) = (Vec::new(), HashMap::new());
        let (mut included, mut named) = (HashMap::<_, Vec<Id>>::new(), HashMap::<_, Vec<Id>>::new());
        for (number, member) in members.into_iter().enumerate() {
            let root = input.root.inside(&member.source).and_then(|path| Some(input.root.find(&path)?.path));
            let soname = member.facts.soname.as_deref().unwrap_or(name(&member.path));
            named.entry(soname.to_vec()).or_default().push(number);
            in_tree.insert(member.path.clone(), number);
            if let Some(path) = &root {
                included.entry(path.clone()).or_default().push(number);
            }
            let home = Home::Tree { path: member.path.clone(), root, host: member.source.clone() };
            objects.push(Object { home, facts: Rc::new(member.facts.clone()) });
        }
        Self {
            input,
            objects,
            in_tree,
            included,
            named,
            outside: HashMap::new(),
            rules: HashMap::new(),
            pointed: BTreeMap::new(),
        }
    }

    pub(crate) fn rules(&mut self, interpreter: &[u8], target: Target) -> Rc<Rules> {
        let key = (interpreter.to_vec(), target);
        let make = || Rc::new(Rules::new(self.input.root, interpreter, target));
        self.rules.entry(key).or_insert_with(make).clone()
    }

    /// A member as the first file of a process.
    pub(crate) fn main(&self, object: Id) -> Hit {
        let (tree_origin, root_origin) = match &self.objects[object].home {
            Home::Tree { path, root, .. } => {
                (Some(parent(path).to_vec()), root.as_deref().map(|path| parent(path).to_vec()))
            }
            Home::Outside(found) => (None, Some(parent(&found.path).to_vec())),
        };
        Hit { object, tree_origin, root_origin, found: self.objects[object].path().to_vec(), by: By::Path }
    }

    /// The loader that the kernel would start.
    pub(crate) fn interpreter(&mut self, path: &[u8], target: Target) -> Result<Hit, Tried> {
        let by = By::Interpreter;
        match self.on_root(path, target, by)? {
            Some(hit) => Ok(hit),
            None => Err(Tried { path: path.to_vec(), by, verdict: Verdict::Absent }),
        }
    }

    fn in_tree(&self, path: &[u8], target: Target, by: By) -> Result<Option<Hit>, Tried> {
        let Some(real) = self.input.tree.find(path) else { return Ok(None) };
        let failed = |verdict| Tried { path: path.to_vec(), by, verdict };
        let Some(object) = self.in_tree.get(&real).copied() else {
            return Err(failed(Verdict::NotLoadable("not an ELF file".to_owned())));
        };
        fit(&self.objects[object].facts, target).map_err(failed)?;
        let root_origin = self.main(object).root_origin;
        let tree_origin = Some(parent(path).to_vec());
        Ok(Some(Hit { object, tree_origin, root_origin, found: path.to_vec(), by }))
    }

    fn on_root(&mut self, path: &[u8], target: Target, by: By) -> Result<Option<Hit>, Tried> {
        let Some(found) = self.input.root.find(path) else { return Ok(None) };
        if let Some(hit) = self.included_as(&found.path, name(path), by) {
            return Ok(Some(hit));
        }
        let failed = |verdict| Tried { path: path.to_vec(), by, verdict };
        let object = self.outside(found).map_err(failed)?;
        fit(&self.objects[object].facts, target).map_err(failed)?;
        let root_origin = Some(parent(path).to_vec());
        Ok(Some(Hit { object, tree_origin: None, root_origin, found: path.to_vec(), by }))
    }

    /// The member that is this file of the root, if the tree has it under the wanted name where it can be searched.
    fn included_as(&self, real: &[u8], name: &[u8], by: By) -> Option<Hit> {
        let path_of = |object: &Id| join(parent(self.objects[*object].path()), name);
        let has_name = |object: &&Id| {
            let path = path_of(object);
            can_be_searched(parent(&path))
                && self.input.tree.find(&path).as_deref() == Some(self.objects[**object].path())
        };
        let object = self.included.get(real)?.iter().find(has_name)?;
        Some(Hit { found: path_of(object), by, ..self.main(*object) })
    }

    fn outside(&mut self, found: Found) -> Result<Id, Verdict> {
        if let Some(known) = self.outside.get(&found.path) {
            return known.clone();
        }
        let path = found.path.clone();
        let facts = match (self.input.read)(&found.host) {
            Ok(Some(facts)) => Ok(facts),
            Ok(None) => Err(Verdict::NotLoadable("not an ELF file".to_owned())),
            Err(error) => Err(Verdict::NotLoadable(error.to_string())),
        };
        let object = facts.map(|facts| {
            self.objects.push(Object { home: Home::Outside(found), facts: Rc::new(facts) });
            self.objects.len() - 1
        });
        self.outside.insert(path, object.clone());
        object
    }

    /// The entries of one object's own list.
    fn own(&self, process: &Process, asker: usize, list: &[Vec<u8>], by: By, rules: &Rules) -> Vec<Step> {
        let hit = &process.loaded[asker].hit;
        let tree = |entry: &[u8]| rules.expand_in_tree(entry, hit.tree_origin.as_deref()?);
        let root = |entry: &[u8]| match (&hit.root_origin, rules.from_origin(entry)) {
            (None, Some(_)) => None,
            (origin, _) => rules.expand(entry, origin.as_deref().unwrap_or_default()),
        };
        list.iter().map(|entry| Step { tree: tree(entry), root: root(entry), by }).collect()
    }

    /// The object's list that is in force for what the object itself needs.
    fn nearest(&self, process: &Process, asker: usize, rules: &Rules) -> Vec<Step> {
        let facts = &self.objects[process.loaded[asker].hit.object].facts;
        let by = if facts.runpath.is_some() { By::Runpath } else { By::Rpath };
        self.own(process, asker, facts.own_path(), by, rules)
    }

    /// Where a loader looks for what a file needs.
    fn steps(&self, process: &Process, asker: usize, rules: &Rules) -> Vec<Step> {
        let chain = process.chain(asker).into_iter().rev();
        let facts = |number: usize| &self.objects[process.loaded[number].hit.object].facts;
        let mut steps = Vec::new();
        if rules.libc == Libc::Musl {
            steps.extend(chain.flat_map(|number| self.nearest(process, number, rules)));
        } else if facts(asker).runpath.is_some() {
            steps.extend(self.nearest(process, asker, rules));
        } else {
            let inherited = chain.filter(|number| facts(*number).runpath.is_none());
            steps.extend(inherited.flat_map(|number| self.nearest(process, number, rules)));
        }
        let no_defaults =
            rules.libc == Libc::Glibc && facts(asker).flags_1 & goblin::elf::dynamic::DF_1_NODEFLIB != 0;
        let system = rules.system.iter().filter(|(_, by)| !(no_defaults && *by == By::Default));
        steps.extend(system.map(|(folder, by)| Step { tree: None, root: Some(folder.clone()), by: *by }));
        steps
    }

    /// A needed name that is a path.
    fn path(&mut self, asker: &Hit, path: &[u8], target: Target, rules: &Rules) -> Result<Hit, Vec<Tried>> {
        let in_tree = asker.tree_origin.as_ref().and_then(|origin| rules.expand_in_tree(path, origin));
        let on_root = rules.expand(path, asker.root_origin.as_deref().unwrap_or_default());
        let step = Step {
            tree: in_tree.as_deref().map(|path| parent(path).to_vec()),
            root: on_root.as_deref().map(|path| parent(path).to_vec()),
            by: By::Path,
        };
        self.walk(vec![step], name(path), target).map(|(hit, _)| hit)
    }

    /// The first fitting file on these steps; the tree's steps come first, as they will in the bundle. And whether
    /// it is a file of the tree that was found by a path on the root.
    fn walk(&mut self, steps: Vec<Step>, name: &[u8], target: Target) -> Result<(Hit, bool), Vec<Tried>> {
        let mut tried = Vec::new();
        let tree = steps.iter().filter_map(|step| Some((true, join(step.tree.as_ref()?, name), step.by)));
        let root = steps.iter().filter_map(|step| Some((false, join(step.root.as_ref()?, name), step.by)));
        for (is_tree, path, by) in tree.chain(root) {
            let result =
                if is_tree { self.in_tree(&path, target, by) } else { self.on_root(&path, target, by) };
            match result {
                Ok(Some(hit)) => {
                    let pointed = !is_tree && !self.objects[hit.object].is_outside();
                    return Ok((hit, pointed));
                }
                Ok(None) => tried.push(Tried { path, by, verdict: Verdict::Absent }),
                Err(failed) => {
                    let gives_up = matches!(failed.verdict, Verdict::NotLoadable(_));
                    tried.push(failed);
                    if gives_up {
                        break;
                    }
                }
            }
        }
        Err(tried)
    }

    /// What a file's own list alone leads to.
    pub(crate) fn by_own_list(
        &mut self,
        process: &Process,
        asker: usize,
        name: &[u8],
        rules: &Rules,
    ) -> Option<Hit> {
        let steps = self.nearest(process, asker, rules);
        self.walk(steps, name, process.target).ok().map(|(hit, _)| hit)
    }

    /// What makes two processes search alike: the program's own list, spelled out.
    pub(crate) fn own_folders(&self, process: &Process, rules: &Rules) -> Vec<Folders> {
        let existing = |path: Vec<u8>| self.input.tree.find(&path);
        let steps = self.nearest(process, 0, rules).into_iter();
        steps.map(|step| (step.tree.and_then(existing), step.root)).collect()
    }
}

/// False for a folder that a search path cannot name: `:` ends it there, `$` begins a name that loaders replace
/// (ld.so(8)), and musl's loader ends it at a newline too (`path_open` in ldso/dynlink.c).
pub(crate) fn can_be_searched(folder: &[u8]) -> bool {
    !folder.iter().any(|byte| b":$\n".contains(byte))
}

/// Whether a loader takes the file into a process.
fn fit(facts: &Facts, target: Target) -> Result<(), Verdict> {
    match facts.kind {
        _ if facts.target != target => Err(Verdict::Other(facts.target)),
        Kind::Other | Kind::Static => Err(Verdict::NotLoadable("not a shared library".to_owned())),
        Kind::Library | Kind::Program => Ok(()),
    }
}

/// A [`Lookup`] by one loader's rules.
pub(crate) struct Loader<'l, 'a> {
    pub lookup: &'l mut Lookup<'a>,
    pub rules: Rc<Rules>,
    /// True if the process has a plug-in, before which its program may have loaded others.
    pub is_module: bool,
}

impl Finder for Loader<'_, '_> {
    fn find(&mut self, process: &Process, asker: usize, name: &[u8]) -> Result<Hit, Vec<Tried>> {
        if name.contains(&b'/') {
            return self.lookup.path(&process.loaded[asker].hit, name, process.target, &self.rules);
        }
        let steps = self.lookup.steps(process, asker, &self.rules);
        let (hit, is_pointed) = self.lookup.walk(steps, name, process.target)?;
        if is_pointed {
            let object = process.loaded[asker].hit.object;
            // What is added has no list of its own: the program's leads it.
            let object =
                if self.lookup.objects[object].is_outside() { process.loaded[0].hit.object } else { object };
            self.lookup.pointed.entry(object).or_default().extend(hit.tree_origin.clone());
        }
        Ok(hit)
    }

    fn facts(&self, object: Id) -> Rc<Facts> {
        self.lookup.objects[object].facts.clone()
    }

    fn assume(&self, process: &Process, name: &[u8]) -> Option<Id> {
        let candidates = self.is_module.then(|| self.lookup.named.get(name))??;
        let fits = |object: &Id| fit(&self.lookup.objects[*object].facts, process.target).is_ok();
        candidates.iter().copied().find(fits)
    }

    fn variants(&mut self, loaded: &Loaded) -> Vec<(Vec<u8>, Hit)> {
        let Hit { object, root_origin: Some(folder), by, .. } = &loaded.hit else { return Vec::new() };
        let outside = self.lookup.objects[*object].is_outside();
        if self.rules.libc == Libc::Musl || !outside || loaded.is_variant || loaded.name.contains(&b'/') {
            return Vec::new();
        }
        let (target, root) = (self.lookup.objects[*object].facts.target, self.lookup.input.root);
        let levels = join(folder, b"glibc-hwcaps");
        let mut variants = Vec::new();
        for level in root.list(&levels) {
            let name = [b"glibc-hwcaps/", level.as_slice(), b"/", &loaded.name].concat();
            if let Ok(Some(hit)) = self.lookup.on_root(&join(folder, &name), target, *by) {
                variants.push((name, hit));
            }
        }
        variants
    }
}
