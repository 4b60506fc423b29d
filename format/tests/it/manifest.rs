//! What a reader makes of a manifest.

use kitbag_format::Manifest;

use crate::bundle;

const SERVICE: &str = r#"{"name": "web", "version": "1", "services": {"web": {"argv": ["bin/web"]}}}"#;

#[test]
fn a_manifest_comes_back_as_it_was_written() {
    let manifest = bundle::manifest();
    let text = manifest.to_text();
    assert!(text.ends_with("}\n"));
    assert_eq!(Manifest::from_text(&text).expect("a manifest"), manifest);
    assert_eq!(manifest.fault(), None);
}

#[test]
fn unknown_fields_are_ignored_and_defaults_filled_in() {
    let later = SERVICE.replace("\"version\"", "\"mood\": {\"x\": [1]}, \"version\"");
    let manifest = Manifest::from_text(&later).expect("a later manifest");
    assert_eq!(manifest, Manifest::from_text(SERVICE).expect("a manifest"));
    let text = manifest.to_text();
    assert!(text.contains("\"stop_signal\": \"SIGTERM\"") && text.contains("\"stop_timeout_ms\": 10000"));
    assert!(text.contains("\"restart\": \"always\""));
}

#[test]
fn a_manifest_that_starts_nothing_or_both_kinds_is_refused() {
    assert!(Manifest::from_text(r#"{"name": "web", "version": "1"}"#).is_err());
    let empty = Manifest::from_text(r#"{"name": "web", "version": "1", "services": {}}"#).expect("parses");
    assert_eq!(empty.fault(), Some("has no program, or a path that leaves the tree"));
    let none =
        Manifest::from_text(r#"{"name": "web", "version": "1", "command": {"argv": []}}"#).expect("parses");
    assert!(none.fault().is_some());
    assert!(Manifest::from_text(&"[".repeat(100_000)).is_err());
}

#[test]
fn names_and_paths_that_lead_elsewhere_are_refused() {
    for (from, to) in [
        ("\"name\": \"web\"", "\"name\": \"../../etc\""),
        ("\"name\": \"web\"", "\"name\": \"..\""),
        ("\"name\": \"web\"", "\"name\": \"\""),
        ("\"version\": \"1\"", "\"version\": \"1/../../x\""),
        ("\"version\": \"1\"", "\"version\": \"\\u001b[2J\""),
        ("{\"web\":", "{\"we\\nb\":"),
        ("bin/web", "/bin/sh"),
        ("bin/web", "../sh"),
        ("\"services\"", "\"seeds\": [{\"from\": \"a\", \"to\": \"../b\"}], \"services\""),
        ("\"services\"", "\"seeds\": [{\"from\": \"/etc/passwd\", \"to\": \"b\"}], \"services\""),
    ] {
        let text = SERVICE.replacen(from, to, 1);
        assert_ne!(text, SERVICE);
        let manifest = Manifest::from_text(&text).expect("it parses");
        assert!(manifest.fault().is_some(), "{text}");
    }
}
