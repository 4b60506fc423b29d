//! Programs by places: dynamic programs of Debian's packages, and such as are built here, packed into one file and
//! started where nothing of theirs is installed. `docs/portability.md` has the table.

mod apps;
mod behaviour;

use std::collections::BTreeSet;
use std::fs;

use apps::Program;
use kitbag_tests::{Place, workspace};

/// One program in one place: it is packed once, and used there twice, a first and a later start.
fn cell(name: &str, program: &Program, place: Place) {
    let Some(file) = program.packed(name) else { return };
    let Some(mut site) = place.site(file) else { return };
    (program.check)(&site);
    if place == Place::Moved {
        site.move_away();
    }
    (program.check)(&site);
}

/// A module for each program with a test for each place, and the names of all of them.
macro_rules! table {
    ($($program:ident)*; $all:ident $places:tt) => {
        $(table!(@row $program $places);)*

        /// The tests of the table, by their names.
        const CELLS: &[&[&str]] = &[$(table!(@names $program $places)),*];
    };
    (@row $program:ident { $($name:ident => $place:ident,)* }) => {
        mod $program {
            $(#[test]
            fn $name() {
                super::cell(concat!("portable-", stringify!($program)), &super::apps::$program, kitbag_tests::Place::$place);
            })*
        }
    };
    (@names $program:ident { $($name:ident => $place:ident,)* }) => {
        &[$(concat!(stringify!($program), "::", stringify!($name))),*]
    };
}

table! {
    redis_tool redis_service jq git cpp musl python flask node jar;
    all {
        empty_root => EmptyRoot,
        debian_11 => Debian11,
        debian_testing => DebianTesting,
        busybox_and_musl => Busybox,
        noexec_tmp_and_home => Noexec,
        read_only_home => ReadOnlyHome,
        not_root => NotRoot,
        odd_path => OddPath,
        moved => Moved,
    }
}

#[test]
fn the_table_in_the_docs_names_these_tests() {
    let text = fs::read_to_string(workspace().join("docs/portability.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let cells = rows.flat_map(|row| row.split('|')).map(|cell| cell.trim().trim_matches('`'));
    let named: BTreeSet<&str> = cells.filter(|cell| cell.contains("::")).collect();
    let all: BTreeSet<&str> = CELLS.iter().flat_map(|row| row.iter().copied()).collect();
    assert_eq!(named, all);
}
