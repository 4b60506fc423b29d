//! Where in the bundle each added file goes: flat in one folder, in a second one where a name is taken, and so on.

use std::collections::{BTreeMap, HashMap};

use crate::process::Id;

/// The tree's folder for what comes along by itself, where the bundle's loaders look last.
pub const FOLDER: &[u8] = b".kitbag/lib";

/// What one program or module needs from outside of the tree.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    /// Names that are searched, and the files from outside that they have to lead to.
    pub wants: Vec<(Vec<u8>, Id)>,
    /// All names of its process, and what they lead to.
    pub names: HashMap<Vec<u8>, Id>,
    /// The folder to search before the first one, once it is known: 1 is `.kitbag/lib.2`.
    pub layer: Option<usize>,
}

/// One folder of added files.
#[derive(Debug, Default)]
struct Layer {
    files: BTreeMap<Vec<u8>, Id>,
    /// Units that search it.
    users: Vec<usize>,
}

/// Gives every unit what it wants. Returns the files by folder and name.
pub(crate) fn place(units: &mut [Unit]) -> BTreeMap<Vec<u8>, Id> {
    let mut layers = vec![Layer::default()];
    for number in 0..units.len() {
        let (first, rest) = (&mut layers[0], &mut Vec::new());
        for (name, object) in &units[number].wants {
            let there = first.files.entry(name.clone()).or_insert(*object);
            if there != object {
                rest.push((name.clone(), *object));
            }
        }
        if !rest.is_empty() {
            units[number].layer = Some(put(&mut layers, units, number, rest));
        }
    }
    let path = |layer: usize, name: &[u8]| [&folder(layer), b"/".as_slice(), name].concat();
    let files = layers.iter().enumerate();
    files
        .flat_map(|(number, layer)| {
            layer.files.iter().map(move |(name, object)| (path(number, name), *object))
        })
        .collect()
}

/// The first further folder where a unit's files can be without standing in another unit's way, or in their own.
fn put(layers: &mut Vec<Layer>, units: &[Unit], unit: usize, files: &[(Vec<u8>, Id)]) -> usize {
    let suits = |unit: usize, name: &[u8], object: Id| {
        units[unit].names.get(name).is_none_or(|other| *other == object)
    };
    let fits = |layer: &Layer| {
        files.iter().all(|(name, object)| layer.files.get(name).is_none_or(|other| other == object))
            && layer.files.iter().all(|(name, object)| suits(unit, name, *object))
            && layer.users.iter().all(|user| files.iter().all(|(name, object)| suits(*user, name, *object)))
    };
    let layer = (1..layers.len()).find(|layer| fits(&layers[*layer])).unwrap_or(layers.len());
    if layer == layers.len() {
        layers.push(Layer::default());
    }
    layers[layer].files.extend(files.iter().cloned());
    layers[layer].users.push(unit);
    layer
}

/// A folder by its number: `.kitbag/lib`, `.kitbag/lib.2`, …
pub(crate) fn folder(layer: usize) -> Vec<u8> {
    match layer {
        0 => FOLDER.to_vec(),
        _ => [FOLDER, format!(".{}", layer + 1).as_bytes()].concat(),
    }
}
