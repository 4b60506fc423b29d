//! What is written is read back by the parser that every later start uses.
#![allow(unsafe_code)] // `Env::new` takes pointers, as the kernel hands them over.

use std::ffi::CStr;

use kitbag_entry::{
    image::{Arena, Env, arguments, environment, guards_hold, lies_in, resolved},
    record::Record,
};

use super::*;

fn literal(text: &str) -> Piece {
    Piece::Literal(text.into())
}

fn example() -> StartRecord {
    StartRecord {
        head_prefix: [7; 64],
        folder: "/place/v1/trees/77".into(),
        guards: vec![
            Guard { name: "XDG_STATE_HOME".into(), value: None },
            Guard { name: "HOME".into(), value: Some("/home/me".into()) },
        ],
        needs: Some("/state".into()),
        files: vec![CheckedFile {
            path: "/place/v1/trees/77/tree/app".into(),
            size: 5,
            inode: 6,
            ctime: -7,
            ctime_nsec: 8,
        }],
        keep_loader_variables: true,
        boot_id: Some(*b"0f2c8c2e-5b1e-4d6e-9d0e-3f1f8a8b9c0d"),
        cwd: Some(vec![literal("/state/"), Piece::Env("SUB".into(), Some("x".into()))]),
        argv: vec![
            vec![literal("/place/v1/trees/77/tree/app")],
            vec![literal("--port="), Piece::Env("PORT".into(), Some("80".into())), literal("!")],
            vec![],
        ],
        env: vec![
            ("APP".into(), vec![literal("/tree")]),
            ("LANG".into(), vec![Piece::Env("LANG".into(), None), literal(".x")]),
        ],
    }
}

/// Owns what the kernel would have put on the stack.
struct Caller(Vec<Vec<u8>>);

impl Caller {
    fn new(variables: &[&str]) -> Self {
        Self(variables.iter().map(|text| format!("{text}\0").into_bytes()).collect())
    }
    fn pointers(&self) -> Vec<*const u8> {
        self.0.iter().map(|text| text.as_ptr()).collect()
    }
}

fn strings(pointers: &[*const u8]) -> Vec<String> {
    let (last, pointers) = pointers.split_last().unwrap();
    assert!(last.is_null());
    // SAFETY: made from texts with zeros at their ends, which are alive in the caller.
    let text = |pointer: &*const u8| unsafe { CStr::from_ptr(pointer.cast()) };
    pointers.iter().map(|pointer| text(pointer).to_string_lossy().into_owned()).collect()
}

/// Arguments and environment that `record` leads to, or `None` where a full start is needed.
fn image(record: &Record, variables: &[&str], more: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
    let (caller, more) = (Caller::new(variables), Caller::new(more));
    let (entries, more) = (caller.pointers(), more.pointers());
    // SAFETY: `caller` outlives `env`.
    let env = unsafe { Env::new(&entries) };
    let (mut texts, mut pointers) = ([0; 256], [std::ptr::null(); 16]);
    let (mut texts, mut pointers) = (Arena::new(&mut texts), Arena::new(&mut pointers));
    let argv = arguments(record.argv, &more, env, &mut texts, &mut pointers)?;
    let vars = environment(record.env, record.flags, env, &mut texts, &mut pointers)?;
    Some((strings(argv), strings(vars)))
}

#[test]
fn a_record_is_read_back_as_it_was_written() {
    let bytes = example().to_bytes().unwrap();
    let record = Record::parse(&bytes, &[7; 64]).unwrap();
    assert_eq!(record.boot_id, b"0f2c8c2e-5b1e-4d6e-9d0e-3f1f8a8b9c0d");
    assert_eq!(record.folder, b"/place/v1/trees/77");
    assert!(lies_in(b"/place/v1/trees/77/start\0", record.folder));
    assert!(!lies_in(b"/place/v1/trees/78/start\0", record.folder));
    assert_eq!(record.needs, b"/state\0");
    let mut files = record.files;
    assert_eq!(files.path().unwrap(), b"/place/v1/trees/77/tree/app\0");
    assert_eq!([(); 4].map(|()| files.u64().unwrap() as i64), [5, 6, -7, 8]);
    assert!(files.is_empty());
}

#[test]
fn arguments_and_environment_are_resolved_for_each_caller() {
    let bytes = example().to_bytes().unwrap();
    let record = Record::parse(&bytes, &[7; 64]).unwrap();
    let app = "/place/v1/trees/77/tree/app";

    let (argv, env) = image(&record, &["LANG=C", "PORT=99", "APPX=1", "APP=old"], &["a", "", "b c"]).unwrap();
    assert_eq!(argv, [app, "--port=99!", "", "a", "", "b c"]);
    assert_eq!(env, ["PORT=99", "APPX=1", "APP=/tree", "LANG=C.x"]);

    let (argv, env) = image(&record, &["PORT=", "LANG="], &[]).unwrap();
    assert_eq!(argv, [app, "--port=80!", ""], "empty counts as unset where there is a default");
    assert_eq!(env, ["PORT=", "APP=/tree", "LANG=.x"], "empty is set where there is none");

    assert_eq!(image(&record, &["PORT=1"], &[]), None, "LANG must be set");
    assert_eq!(image(&record, &["LANG=C"], &["x"; 16]), None, "more pointers than fit");
    assert_eq!(image(&record, &[&format!("LANG={}", "x".repeat(256))], &[]), None, "more text than fits");
}

#[test]
fn variables_for_loaders_are_kept_from_a_program_with_its_own() {
    let mut example = example();
    example.keep_loader_variables = false;
    example.env.push(("LD_BIND_NOW".into(), vec![literal("1")]));
    let bytes = example.to_bytes().unwrap();
    let record = Record::parse(&bytes, &[7; 64]).unwrap();
    let caller = ["LANG=", "LD_PRELOAD=x", "LD=1", "LD_", "ALD_X=1", "LD_BIND_NOW=0", "LDX=1", "L", ""];
    let (_, env) = image(&record, &caller, &[]).unwrap();
    assert_eq!(env, ["LD=1", "ALD_X=1", "LDX=1", "L", "", "APP=/tree", "LANG=.x", "LD_BIND_NOW=1"]);
}

#[test]
fn a_record_with_a_flag_that_is_not_known_is_none() {
    let mut bytes = example().to_bytes().unwrap();
    bytes[124] = 2;
    let sum = checksum(&bytes[24..]);
    bytes[16..24].copy_from_slice(&sum.to_le_bytes());
    assert!(Record::parse(&bytes, &[7; 64]).is_none());
}

#[test]
fn the_working_directory_is_resolved() {
    let bytes = example().to_bytes().unwrap();
    let record = Record::parse(&bytes, &[7; 64]).unwrap();
    let mut texts = [0; 64];
    // SAFETY: no pointers.
    let env = unsafe { Env::new(&[]) };
    assert_eq!(resolved(record.cwd, env, &mut Arena::new(&mut texts)), Some(&b"/state/x\0"[..]));
}

#[test]
fn guards_hold_for_the_same_environment_only() {
    let bytes = example().to_bytes().unwrap();
    let record = Record::parse(&bytes, &[7; 64]).unwrap();
    let hold = |variables: &[&str]| {
        let caller = Caller::new(variables);
        let entries = caller.pointers();
        // SAFETY: `caller` outlives the call.
        guards_hold(record.guards, unsafe { Env::new(&entries) }).is_some()
    };
    assert!(hold(&["HOME=/home/me", "A=b"]));
    assert!(!hold(&["HOME=/home/m"]));
    assert!(!hold(&["HOME=/home/me2"]));
    assert!(!hold(&["HOME="]));
    assert!(!hold(&[]));
    assert!(!hold(&["HOME=/home/me", "XDG_STATE_HOME="]));
}

#[test]
fn damage_is_found() {
    let bytes = example().to_bytes().unwrap();
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            assert!(Record::parse(&damaged, &[7; 64]).is_none(), "byte {at} ^ {flip:#x}");
        }
        assert!(Record::parse(&bytes[..at], &[7; 64]).is_none(), "cut at {at}");
    }
    assert!(Record::parse(&[&bytes[..], b"\0"].concat(), &[7; 64]).is_none(), "longer");
    assert!(Record::parse(&bytes, &[8; 64]).is_none(), "another bundle's");
}

#[test]
fn hostile_lengths_are_refused_even_under_a_right_checksum() {
    let bytes = example().to_bytes().unwrap();
    for at in 128..bytes.len() - 4 {
        for length in [0xffff_ffff_u32, 0x7fff_ffff, 0, 1] {
            let mut hostile = bytes.clone();
            hostile[at..at + 4].copy_from_slice(&length.to_le_bytes());
            let sum = checksum(&hostile[24..]);
            hostile[16..24].copy_from_slice(&sum.to_le_bytes());
            // Whatever it means now: nothing panics, nothing is read outside.
            if let Some(record) = Record::parse(&hostile, &[7; 64]) {
                let _ = image(&record, &["LANG=C"], &[]);
            }
        }
    }
}

#[test]
fn what_no_system_call_could_take_is_refused() {
    let mut record = example();
    record.argv.push(vec![literal("a\0b")]);
    assert_eq!(record.to_bytes().unwrap_err().kind(), ErrorKind::InvalidInput);
    record.argv.pop();
    record.argv.push(vec![literal(&"x".repeat(MAX_LEN))]);
    assert_eq!(record.to_bytes().unwrap_err().kind(), ErrorKind::FileTooLarge);
}
