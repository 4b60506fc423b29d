//! What is wrong with a program, or only looks wrong: said when packing, with what to do, or harmless.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kitbag_tests::{App, Bundle, Cmd, Folder, Outcome, Place, tools, unmet, workspace};

/// `kitbag pack` says that kitbag.toml, or what it names, is wrong.
const WRONG: i32 = 3;

/// An app that a shell script builds in `$TREE`; its program is `bin/program`. The script's folder has `main.c`, which
/// prints what `f` of some library says, and is kept while the app is.
fn built(script: &str) -> App {
    built_for("command = [\"bin/program\"]", script)
}

fn built_for(manifest: &str, script: &str) -> App {
    let (app, build) = (App::new(manifest), Folder::new());
    fs::create_dir(app.tree("bin")).unwrap();
    let files = [
        ("alone.c", "#include <stdio.h>\nint main(void) { puts(\"it runs\"); return 0; }\n"),
        (
            "main.c",
            "#include <stdio.h>\nint f(void);\nint main(void) { printf(\"f is %d\\n\", f()); return 0; }\n",
        ),
        ("f.c", "int f(void) { return F; }\n"),
    ];
    for (name, text) in files {
        fs::write(build.join(name), text).unwrap();
    }
    let script = format!("set -eu\n{script}");
    Cmd::new("bash").args(["-c", &script]).cwd(build.path()).env("TREE", app.tree("")).run().succeeds();
    app.keeping(build)
}

/// Overwrites bytes of a file.
fn patch(path: &Path, at: usize, new: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
    fs::write(path, bytes).unwrap();
}

/// Starts a bundle where there is nothing but itself.
fn starts_alone(bundle: &Bundle) -> Option<Outcome> {
    let site = Place::EmptyRoot.site(&bundle.file)?;
    Some(site.command([""; 0]).run())
}

/// Where an ELF header of 64 bits has what these tests change (elf(5)).
mod header {
    pub const MACHINE: usize = 18;
    pub const SECTIONS: usize = 40;
    pub const SECTION_COUNT: usize = 60;
}

/// A program that needs `libf.so.1`, which lies in the build's folder `lib`.
const WITH_LIBRARY: &str = "mkdir lib
gcc -shared -fPIC -DF=1 -Wl,-soname,libf.so.1 -o lib/libf.so.1 f.c
gcc -o \"$TREE/bin/program\" main.c lib/libf.so.1 -Wl,-rpath,\"$PWD/lib\"";

#[test]
fn a_program_for_another_architecture_misses_its_loader() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built("gcc -o \"$TREE/bin/program\" alone.c");
    patch(&app.tree("bin/program"), header::MACHINE, &183u16.to_le_bytes());
    let refused =
        app.refused(WRONG).says("`bin/program` needs `/lib64/ld-linux-x86-64.so.2`, which nothing provides");
    refused.says("is for X86_64 (64 bits)").says("searched for AARCH64 (64 bits)").says("--root DIR");
}

#[test]
fn a_library_of_the_wrong_class_is_named() {
    if !tools(&["gcc"]) {
        return;
    }
    // As `gcc -m32` makes it, without asking for its headers and libraries.
    let app = built(&format!("{WITH_LIBRARY}\ngcc -m32 -nostdlib -shared -fPIC -DF=1 -o lib/libf.so.1 f.c"));
    let refused = app.refused(WRONG).says("`bin/program` needs `libf.so.1`");
    refused.says("/lib/libf.so.1` is for 386 (32 bits)").says("searched for X86_64 (64 bits)");
}

#[test]
fn two_programs_have_two_libraries_of_one_name() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built(
        "for number in 1 2; do
            mkdir $number
            gcc -shared -fPIC -DF=$number -Wl,-soname,libf.so.1 -o $number/libf.so.1 f.c
            gcc -o \"$TREE/bin/program$number\" main.c $number/libf.so.1 -Wl,-rpath,\"$PWD/$number\"
        done
        printf '%s\\n' '#!/bin/sh' '\"${0%/*}/program1\"; \"${0%/*}/program2\"' >\"$TREE/bin/program\"
        chmod +x \"$TREE/bin/program\"",
    );
    let bundle = app.pack();
    drop(app);
    assert_eq!(bundle.run([""; 0]).succeeds().text(), "f is 1\nf is 2\n");
    let list = Cmd::kitbag(["list"]).arg(&bundle.file).run().succeeds();
    list.prints(".kitbag/lib/libf.so.1\n").prints(".kitbag/lib.2/libf.so.1\n");
}

#[test]
fn one_process_cannot_have_two_libraries_of_one_name_and_both_ways_to_them_are_said() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built(
        "for number in 1 2; do
            mkdir $number
            gcc -shared -fPIC -DF=$number -Wl,-soname,libf.so.1 -o $number/libf.so.1 f.c
        done
        echo 'int f(void); int g(void) { return f(); }' >g.c
        gcc -shared -fPIC -Wl,-soname,libg.so.1 -o 1/libg.so.1 g.c 2/libf.so.1 -Wl,-rpath,\"$PWD/2\"
        gcc -o \"$TREE/bin/program\" main.c -Wl,--no-as-needed 1/libf.so.1 1/libg.so.1 -Wl,-rpath,\"$PWD/1\"",
    );
    let refused = app.refused(WRONG).says("one program needs two different libraries `libf.so.1`");
    let refused = refused.says("one comes in because bin/program needs libf.so.1, found at ");
    refused.says("the other one because bin/program needs libg.so.1").says("/2/libf.so.1\n");
}

#[test]
fn damaged_headers_are_packed_as_they_are_or_refused_and_never_a_panic() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built(WITH_LIBRARY);
    let (program, output) = (app.tree("bin/program"), Folder::new());
    let whole = fs::read(&program).unwrap();
    let dynamic = {
        let tables = u64::from_le_bytes(whole[32..40].try_into().unwrap()) as usize;
        let entries = whole[tables..].chunks(56).find(|entry| entry[..4] == 2u32.to_le_bytes()).unwrap();
        u64::from_le_bytes(entries[8..16].try_into().unwrap()) as usize
    };
    // Every byte of the header, some of each program header, some of the dynamic section, and files cut short.
    let places = (4..64).chain((64..64 + 56 * 13).step_by(9)).chain((dynamic..dynamic + 256).step_by(8));
    let changed = places.flat_map(|at| [(at, 0xffu8), (at, 0x41)]).map(|(at, byte)| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    });
    let cut = (0..whole.len()).step_by(whole.len() / 40).map(|length| whole[..length].to_vec());
    for (number, bytes) in changed.chain(cut).enumerate() {
        fs::write(&program, bytes).unwrap();
        let packed = app.pack_to(&output.join("bundle"), ["--level", "1"]).run();
        let code = packed.status.code();
        packed.check(matches!(code, Some(0 | WRONG)), &format!("success or a refusal of variant {number}"));
    }
}

#[test]
fn a_store_too_deep_for_an_interpreters_path_is_refused_with_what_to_do() {
    if !tools(&["gcc"]) {
        return;
    }
    let bundle = built("gcc -o \"$TREE/bin/program\" alone.c").pack();
    let deep = (0..5).fold(bundle.sandbox.path().to_owned(), |path, _| path.join("d".repeat(240)));
    let refused = bundle.command([""; 0]).env("KITBAG_STORE", &deep).run().exits(125);
    let refused = refused.says("its path cannot go into `bin/program`").says("is the most that fits");
    refused.says("choose a shorter one").says("set KITBAG_STORE to a folder of your own");
    bundle.run([""; 0]).succeeds().prints("it runs");
}

#[test]
fn a_store_whose_path_loaders_would_misread_is_refused_with_what_to_do() {
    if !tools(&["gcc"]) {
        return;
    }
    let bundle = built("gcc -o \"$TREE/bin/program\" alone.c").pack();
    for (name, letter) in [("a:b", "':'"), ("a$b", "'$'")] {
        let store = bundle.sandbox.path().join(name);
        let refused = bundle.command([""; 0]).env("KITBAG_STORE", store).run().exits(125);
        refused.says(&format!("it has {letter} in it; choose one without"));
    }
}

#[test]
fn a_runpath_to_a_folder_of_the_build_machine_is_not_needed_later() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built(WITH_LIBRARY);
    let bundle = app.pack();
    drop(app);
    let Some(outcome) = starts_alone(&bundle) else { return };
    outcome.succeeds().prints("f is 1\n");
}

#[test]
fn a_static_pie_stays_as_it_is() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built("gcc -static-pie -o \"$TREE/bin/program\" alone.c");
    let bundle = stays_as_it_is(&app);
    let Some(outcome) = starts_alone(&bundle) else { return };
    outcome.succeeds().prints("it runs");
}

#[test]
fn a_go_program_stays_as_it_is() {
    let Some(program) =
        ["/usr/sbin/gosu", "/usr/bin/gosu"].map(Path::new).into_iter().find(|path| path.exists())
    else {
        return unmet("needs gosu, a small Go program");
    };
    let app = App::new("command = [\"bin/gosu\", \"--version\"]").program("bin/gosu", program);
    stays_as_it_is(&app).run([""; 0]).succeeds().prints("go1.");
}

/// Packs, and unpacks to the same bytes.
#[track_caller]
fn stays_as_it_is(app: &App) -> Bundle {
    let (bundle, folder) = (app.pack(), Folder::new());
    Cmd::kitbag(["unpack"]).arg(&bundle.file).arg(folder.join("out")).run().succeeds();
    kitbag_tests::same_tree(&app.tree(""), &folder.join("out"));
    bundle
}

#[test]
fn a_rust_library_is_opened_by_a_c_program() {
    if !tools(&["gcc", "rustc"]) {
        return;
    }
    let app = built(
        "echo '#[unsafe(no_mangle)] pub extern \"C\" fn answer() -> i32 { std::env::args().count() as i32 + 41 }' >lib.rs
        rustc --edition 2024 --crate-type cdylib -o \"$TREE/bin/libanswer.so\" lib.rs
        cat >open.c <<'END'
            #include <dlfcn.h>
            #include <stdio.h>
            #include <string.h>
            int main(int count, char **args) {
                char path[4096];
                strcpy(path, args[0]);
                strcpy(strrchr(path, '/') + 1, \"libanswer.so\");
                void *library = dlopen(path, RTLD_NOW);
                if (!library) return puts(dlerror()), 1;
                printf(\"the answer is %d\\n\", ((int (*)(void))dlsym(library, \"answer\"))());
                return 0;
            }
END
        gcc -o \"$TREE/bin/program\" open.c",
    );
    let bundle = app.pack();
    let Some(outcome) = starts_alone(&bundle) else { return };
    outcome.succeeds().prints("the answer is 42\n");
    // libgcc_s is Rust's need alone.
    Cmd::kitbag(["list"]).arg(&bundle.file).run().succeeds().prints(".kitbag/lib/libgcc_s.so.1\n");
}

#[test]
fn a_program_without_a_section_table_is_closed_over_like_any_other() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built(WITH_LIBRARY);
    let program = app.tree("bin/program");
    patch(&program, header::SECTIONS, &[0; 8]);
    patch(&program, header::SECTION_COUNT, &[0; 4]);
    let bundle = app.pack();
    let Some(outcome) = starts_alone(&bundle) else { return };
    outcome.succeeds().prints("f is 1\n");
}

#[test]
fn text_that_is_called_like_a_library_or_begins_like_one_is_data() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built("gcc -o \"$TREE/bin/program\" alone.c")
        .file("lib/libtext.so", "INPUT(-ltext)\n")
        .file("lib/text.elf", "\u{7f}ELF, it says, and is not\n");
    let bundle = app.pack();
    bundle.run([""; 0]).succeeds().prints("it runs");
    let tree = bundle.sandbox.tree();
    assert_eq!(fs::read_to_string(tree.join("lib/libtext.so")).unwrap(), "INPUT(-ltext)\n");
    assert_eq!(fs::read_to_string(tree.join("lib/text.elf")).unwrap(), "\u{7f}ELF, it says, and is not\n");
}

#[test]
fn a_virtual_environment_whose_links_lead_out_of_the_tree_is_refused() {
    let app = App::tool();
    symlink("/usr/bin/python3", app.tree("bin/python3")).unwrap();
    symlink("python3", app.tree("bin/python")).unwrap();
    let app = app.file("pyvenv.cfg", "home = /usr/bin\n");
    let refused = app.refused(WRONG).says("tree/bin/python3").says("it leads to `/usr/bin/python3`");
    refused.says("an absolute link would leave the tree").says("include what it leads to");
}

#[test]
fn a_library_that_nothing_provides_is_an_error_that_says_who_where_and_what_to_do() {
    if !tools(&["gcc"]) {
        return;
    }
    let app = built(&format!("{WITH_LIBRARY}\nrm lib/libf.so.1"));
    let refused = app.refused(WRONG).says("error: `bin/program` needs `libf.so.1`, which nothing provides");
    let refused = refused.says("searched for X86_64 (64 bits): `/").says("/lib`, ").says("`/usr/lib`");
    refused.says("install the package that has it").says("`optional = [\"libf.so.1\"]`");
}

#[test]
fn a_library_that_is_optional_may_be_missing() {
    if !tools(&["gcc"]) {
        return;
    }
    let manifest = "command = [\"bin/program\"]\n[closure]\noptional = [\"libf.so.*\"]";
    let script = format!(
        "{WITH_LIBRARY}\ngcc -o \"$TREE/bin/program\" alone.c\nmkdir \"$TREE/modules\"
        gcc -shared -fPIC -DF=2 -o \"$TREE/modules/module.so\" f.c -Wl,--no-as-needed lib/libf.so.1
        rm lib/libf.so.1"
    );
    built_for(manifest, &script).pack().run([""; 0]).succeeds().prints("it runs");
    let app = built(&script);
    app.refused(WRONG).says("`modules/module.so` needs `libf.so.1`");
}

#[test]
fn a_folder_that_no_search_path_can_name_is_said_or_got_around() {
    if !tools(&["gcc"]) {
        return;
    }
    // By the program's own word the library is there, and nowhere else.
    let script = "mkdir \"$TREE/we:ird\"
        gcc -shared -fPIC -DF=1 -Wl,-soname,libf.so.1 -o \"$TREE/we:ird/libf.so.1\" f.c
        gcc -o \"$TREE/we:ird/program\" main.c \"$TREE/we:ird/libf.so.1\" -Wl,-rpath,'$ORIGIN'
        ln -s ../we:ird/program \"$TREE/bin/program\"";
    let refused = built(script).refused(WRONG).says("would find nothing for `libf.so.1` in the bundle");
    refused.says("no search path can name a folder with `:` or `$` in it; rename that one");
    // The library is included there, and on the build machine as well.
    let app = built(WITH_LIBRARY);
    let needed =
        Cmd::new("sh").args(["-c", "readelf -d bin/program | sed -n 's/.*runpath: \\[\\(.*\\)\\]/\\1/p'"]);
    let folder = needed.cwd(app.tree("")).run().succeeds().text();
    let include = format!("[[include]]\nfrom = \"{}\"\nto = \"we:ird\"\n", folder.trim());
    let manifest = fs::read_to_string(app.dir().join("kitbag.toml")).unwrap();
    fs::write(app.dir().join("kitbag.toml"), manifest + &include).unwrap();
    app.pack().run([""; 0]).succeeds().prints("f is 1\n");
}

#[test]
fn the_bad_cases_in_the_docs_are_these_tests() {
    let docs = fs::read_to_string(workspace().join("docs/portability.md")).unwrap();
    let table = docs.split("| bad case |").nth(1).unwrap();
    let cells =
        table.lines().filter_map(|row| row.split('|').nth(3)).map(|cell| cell.trim().trim_matches('`'));
    let named: BTreeSet<&str> = cells.filter(|cell| cell.contains('_')).collect();
    let source = include_str!("closure_bad.rs");
    let tests = source.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
    let all: BTreeSet<&str> = tests.filter(|name| !name.contains("_in_the_docs_")).collect();
    assert_eq!(named, all);
}
