use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;
use toml::Spanned;
use toml::de::DeTable;

use super::{Draft, bundle_name, quoted};
use crate::cli::Kind;
use crate::manifest::read;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, text).expect("a file");
    }
    folder
}

/// What is drafted for the files: a manifest without an error.
#[track_caller]
fn draft(files: &[(&str, &str)]) -> Draft {
    let folder = folder(files);
    let draft = Kind::ALL.iter().find_map(|kind| kind.look(folder.path())).expect("something");
    let table = DeTable::parse(&draft.text).unwrap_or_else(|error| panic!("{error}\n{}", draft.text));
    let (manifest, errors) = read(&draft.text, &Spanned::new(table.span(), table.get_ref()));
    assert!(errors.is_empty(), "{errors:?}\n{}", draft.text);
    assert!(manifest.name.is_some() || draft.kind == Kind::Cargo, "{}", draft.text);
    draft
}

#[track_caller]
fn assert_drafted(files: &[(&str, &str)], expected: &[&str]) {
    let draft = draft(files);
    for text in expected {
        assert!(draft.text.contains(text), "expected `{text}`\n{}\n{draft:?}", draft.text);
    }
}

const FLASK: &str = "from flask import Flask\napp = Flask(__name__)\n";

#[test]
fn flask_is_served_by_gunicorn_if_that_is_required() {
    let expected =
        ["requirements = \"requirements.txt\"", "\"gunicorn\"", "\"shop.web:app\"", "[services.web]"];
    assert_drafted(
        &[("requirements.txt", "Flask==3.0\ngunicorn\n"), ("shop/web.py", FLASK), ("shop/__init__.py", "")],
        &expected,
    );
    assert_drafted(
        &[("requirements.txt", "flask\nwaitress>=2"), ("app.py", FLASK)],
        &["waitress", "\"app:app\""],
    );
    let own = draft(&[("requirements.txt", "flask"), ("app.py", FLASK)]);
    assert!(own.text.contains("\"flask\", \"--app\", \"app:app\", \"run\""), "{}", own.text);
    assert!(own.hints[0].contains("gunicorn"), "{own:?}");
}

#[test]
fn a_server_gets_a_port_of_the_supervisors() {
    let port = |usual: u16| {
        format!(
            "[services.web.ports]\nhttp = {{ prefer = \"${{env.PORT:-{usual}}}\", range = \"8000-8999\" }}\n"
        )
    };
    let python = |needs: &str, listens: &str| {
        assert_drafted(&[("requirements.txt", needs), ("app.py", FLASK)], &[listens, &port(8000)]);
    };
    python("flask\ngunicorn", "\"--bind\", \"${port.http:listen}\"");
    python("flask\nwaitress", "\"--listen=${port.http:listen}\"");
    python("flask", "\"--host\", \"${port.http:host}\", \"--port\", \"${port.http}\"");
    let node = r#"{"dependencies": {"express": "^4"}}"#;
    assert_drafted(&[("package.json", node), ("index.js", "")], &[&port(8080)]);
    let tool = draft(&[("package.json", r#"{"bin": "bin/tidy.js"}"#), ("bin/tidy.js", "")]);
    assert!(!tool.text.contains("ports"), "{}", tool.text);
}

#[test]
fn a_factory_is_called() {
    let text = "from flask import Flask\ndef create_app():\n    app = Flask(__name__)\n    return app\n";
    let files = [("requirements.txt", "flask\ngunicorn"), ("shop/__init__.py", text)];
    assert_drafted(&files, &["\"shop:create_app()\""]);
}

#[test]
fn fastapi_is_served_by_uvicorn_and_django_by_its_wsgi_module() {
    let text = "from fastapi import FastAPI\napi: FastAPI = FastAPI()\n";
    let project = "[project]\nname = \"My_API\"\nversion = \"2.1\"\ndependencies = [\"fastapi>=0.1\", \"uvicorn[standard]\"]\n";
    assert_drafted(
        &[("pyproject.toml", project), ("main.py", text)],
        &[
            "name = \"my_api\"",
            "version = \"2.1\"",
            "requirements = \"pyproject.toml\"",
            "\"uvicorn\"",
            "\"main:api\"",
        ],
    );
    let manage = "import os\nos.environ.setdefault(\"DJANGO_SETTINGS_MODULE\", \"site1.settings\")\n";
    let files = [("manage.py", manage), ("requirements.txt", "django\ngunicorn")];
    assert_drafted(&files, &["\"site1.wsgi:application\""]);
    assert_drafted(&files[..1], &["\"${tree}/app/manage.py\", \"runserver\", \"--noreload\""]);
}

#[test]
fn commands_packages_and_scripts_become_tools() {
    let project =
        "[project]\nname = \"greet\"\nversion = \"1\"\n[project.scripts]\ngreet = \"greet.cli:main\"\n";
    assert_drafted(
        &[("pyproject.toml", project), ("src/greet/__init__.py", "")],
        &["entry = \"greet.cli:main\"", "project = \"src\""],
    );
    assert_drafted(&[("greet/__main__.py", ""), ("setup.py", "")], &["entry = \"-m greet\""]);
    assert_drafted(&[("tidy.py", ""), ("setup.py", "")], &["entry = \"tidy.py\""]);
    assert_drafted(&[("requirements.txt", "numpy")], &["command = [\"bin/python3\"]", "# entry ="]);
}

#[test]
fn a_virtual_environment_is_taken_as_it_is_and_tells_what_is_installed() {
    let files = [
        (".venv/pyvenv.cfg", ""),
        (".venv/lib/python3.11/site-packages/gunicorn-20.0.dist-info/METADATA", ""),
        ("requirements.txt", "flask"),
        ("app.py", FLASK),
        (".venv/lib/python3.11/site-packages/other.py", FLASK),
    ];
    assert_drafted(&files, &["venv = \".venv\"", "# requirements =", "\"gunicorn\"", "\"app:app\""]);
}

#[test]
fn node_projects_are_servers_or_tools() {
    let server = r#"{"name": "@acme/web", "version": "2.0.1", "scripts": {"start": "node --trace-warnings ./lib/server.js"},
        "dependencies": {"express": "^4"}}"#;
    let web = draft(&[("package.json", server), ("lib/server.js", "")]);
    for text in ["name = \"web\"", "version = \"2.0.1\"", "\"${tree}/app/lib/server.js\"", "[app.node]"] {
        assert!(web.text.contains(text), "{text}\n{}", web.text);
    }
    assert!(web.hints.iter().any(|hint| hint.contains("npm ci")), "{web:?}");
    let tool = r#"{"name": "tidy", "bin": {"tidy": "bin/tidy.js"}}"#;
    assert_drafted(&[("package.json", tool), ("bin/tidy.js", "")], &["entry = \"bin/tidy.js\""]);
    assert_drafted(&[("package.json", r#"{"main": "start"}"#), ("start.js", "")], &["entry = \"start.js\""]);
    assert_drafted(&[("package.json", "not json"), ("index.js", "")], &["entry = \"index.js\""]);
}

#[test]
fn jars_and_programs_are_found_where_builds_put_them() {
    let files = [
        ("target/app-1.0.jar", "PK"),
        ("target/app-1.0-sources.jar", "PK"),
        ("target/original-app.jar", "PK"),
    ];
    assert_drafted(&files, &["[app.java]", "jar = \"target/app-1.0.jar\""]);

    let elf = "\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0";
    let folder = folder(&[("bin/serve", elf), ("bin/libx.so", elf), ("notes.txt", "")]);
    assert!(Kind::Elf.look(folder.path()).is_none(), "nothing is executable");
    for name in ["bin/serve", "bin/libx.so"] {
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let draft = Kind::Elf.look(folder.path()).unwrap();
    assert!(draft.text.contains("command = [\"bin/serve\"]"), "{}", draft.text);
    assert!(draft.text.contains("from = \"bin/serve\""), "{}", draft.text);
}

#[test]
fn a_cargo_package_needs_next_to_nothing() {
    let cargo = "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
    let files = [
        ("Cargo.toml", cargo),
        ("src/main.rs", "fn main() {}"),
        ("templates/a.html", ""),
        ("package.json", "{}"),
    ];
    let draft = draft(&files);
    assert_eq!(draft.kind, Kind::Cargo);
    assert!(draft.text.contains("from = \"templates\""), "{}", draft.text);
}

#[test]
fn nothing_is_found_in_a_folder_of_notes() {
    let folder = folder(&[("notes.txt", "")]);
    assert!(Kind::ALL.iter().all(|kind| kind.look(folder.path()).is_none()));
}

#[test]
fn names_and_strings_become_what_a_manifest_takes() {
    for (text, name) in
        [("@acme/Web App", "web-app"), ("__x__", "x"), ("Ümlaut", "mlaut"), ("", "app"), ("..", "app")]
    {
        assert_eq!(bundle_name(text), name, "{text}");
    }
    assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000A""#);
}
