//! Any bytes as an ELF file, alone and as a member of a tree.
#![no_main]

use kitbag_closure::tree::{Listing, Node};
use kitbag_closure::{ElfError, Facts, Input, Member, Root, resolve};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(Some(facts)) = Facts::read(input) else { return };
    let kept = serde_json::to_vec(&facts).expect("facts as JSON");
    assert_eq!(serde_json::from_slice::<Facts>(&kept).expect("what was written"), facts);
    let _ = (facts.x86_level(), facts.target.to_string());
    if kept.len() < 1 << 20 {
        closure(facts);
    }
});

/// The same file as a program, and as a library beside itself; the root has nothing.
fn closure(facts: Facts) {
    let mut tree = Listing::default();
    let paths = [&b"bin/app"[..], b"lib/one.so", b"lib/two.so"];
    let members = paths.map(|path| {
        tree.add(path, Node::File);
        Member { path: path.to_vec(), source: "/nowhere".into(), facts: facts.clone() }
    });
    let read = |_: &std::path::Path| -> Result<Option<Facts>, ElfError> { Ok(None) };
    let closure = resolve(&Input { members: &members, tree: &tree, root: &Root::new("/nowhere"), read: &read });
    for path in closure.additions.keys() {
        let _ = closure.why(path);
    }
}
