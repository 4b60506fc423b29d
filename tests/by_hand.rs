//! Without kitbag: binutils, zstd and tar alone get everything back.

use std::fs;

use kitbag_tests::{App, Bundle, Cmd, same_tree, tools};

fn bundle() -> (App, Bundle) {
    let big: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let app = App::tool()
        .file("share/empty", "")
        .file("share/deep/er/notes.txt", "by hand\n")
        .file("share/big", big)
        .file(format!("long/{}/{}", "d".repeat(200), "n".repeat(200)), "a name that needs a PAX header");
    std::os::unix::fs::symlink("notes.txt", app.tree("share/deep/er/link")).unwrap();
    fs::create_dir(app.tree("share/empty-folder")).unwrap();
    let bundle = app.pack();
    (app, bundle)
}

#[test]
fn objcopy_zstd_and_tar_give_the_same_tree() {
    if !tools(&["objcopy", "zstd", "tar"]) {
        return;
    }
    let (app, bundle) = bundle();
    let script =
        "objcopy --dump-section .kitbag.payload=p ../bundle out && mkdir tree && zstd -dc p | tar -C tree -x";
    bundle.sandbox.command("sh").args(["-ec", script]).run().succeeds().is_quiet();
    same_tree(&app.tree(""), &bundle.sandbox.home().join("tree"));
}

#[test]
fn the_manifest_is_readable_text() {
    if !tools(&["objcopy"]) {
        return;
    }
    let (_, bundle) = bundle();
    let script = "objcopy --dump-section .kitbag.manifest=m ../bundle out && cat m";
    let outcome = bundle.sandbox.command("sh").args(["-ec", script]).run().succeeds();
    outcome.clone().prints("\"name\": \"app\"").prints("\"version\": \"1.0.0\"").prints("bin/hello");
    serde_json::from_slice::<serde_json::Value>(&outcome.stdout).expect("JSON");
}

#[test]
fn readelf_shows_a_static_pie_with_named_sections() {
    if !tools(&["readelf"]) {
        return;
    }
    let (_, bundle) = bundle();
    let headers = Cmd::new("readelf").arg("-lW").arg(&bundle.file).run().succeeds().is_quiet();
    headers.prints("DYN").prints_no("INTERP");
    let sections = Cmd::new("readelf").arg("-SW").arg(&bundle.file).run().succeeds().is_quiet();
    for name in [".kitbag.payload", ".kitbag.index", ".kitbag.manifest", ".note.kitbag"] {
        assert!(sections.text().contains(name), "{name}\n{sections}");
    }
    let needed = Cmd::new("readelf").arg("-dW").arg(&bundle.file).run().succeeds();
    needed.prints_no("NEEDED");
}

#[test]
fn file_says_static_pie() {
    if !tools(&["file"]) {
        return;
    }
    let (_, bundle) = bundle();
    Cmd::new("file").arg(&bundle.file).run().succeeds().prints("static-pie linked");
}

#[test]
fn zstd_tests_the_payload_and_tar_lists_it_without_a_complaint() {
    if !tools(&["objcopy", "zstd", "tar"]) {
        return;
    }
    let (_, bundle) = bundle();
    let script =
        "objcopy --dump-section .kitbag.payload=p ../bundle out && zstd -tq p && zstd -dc p | tar -t";
    let listed = bundle.sandbox.command("sh").args(["-ec", script]).run().succeeds().is_quiet();
    listed.prints("share/deep/er/notes.txt").prints("share/empty-folder/");
}
