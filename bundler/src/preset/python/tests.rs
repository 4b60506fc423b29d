use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use toml::Spanned;
use toml::de::DeTable;

use super::{Entry, packages};
use crate::diagnostic::{Failure, Source};
use crate::manifest::read;
use crate::plan::{Plan, PlanOptions, plan};
use crate::preset::Expansion;

/// A project with an interpreter that is a script: it says of itself that it is a CPython 3.11 in `python/`.
struct Project(TempDir);

impl Project {
    fn new() -> Self {
        let project = Self(TempDir::new().expect("a temporary folder"));
        let home = project.path("python").display().to_string();
        let facts = format!(
            r#"{{"executable": "{home}/bin/python3.11", "version": "3.11", "release": "3.11.9", "prefix": "{home}",
            "stdlib": "{home}/lib/python3.11", "sites": ["{home}/lib/python3.11/site-packages"],
            "tag": "cpython-311", "venv": false}}"#
        );
        project.program("python/bin/python3.11", &format!("#!/bin/sh\ncat <<'EOF'\n{facts}\nEOF\n"));
        for file in
            ["os.py", "test/test_os.py", "tkinter/__init__.py", "site-packages/own.py", "json/tool.py"]
        {
            project.file(&format!("python/lib/python3.11/{file}"), "");
        }
        project.file("app/shop/__init__.py", "").file("app/shop/main.py", "def run():\n    pass\n");
        project
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(&path, text).expect("a file");
        self
    }

    fn program(&self, path: &str, text: &str) -> &Self {
        self.file(path, text);
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o755)).expect("a mode");
        self
    }

    /// A virtual environment of that interpreter, with packages for Python `version`.
    fn venv(&self, version: &str) -> &Self {
        self.file("app/.venv/pyvenv.cfg", "home = /somewhere\ninclude-system-site-packages = false\n");
        self.file(&format!("app/.venv/lib/python{version}/site-packages/flask/__init__.py"), "");
        fs::create_dir_all(self.path("app/.venv/bin")).expect("a folder");
        symlink(self.path("python/bin/python3.11"), self.path("app/.venv/bin/python")).expect("a link");
        self.program("app/.venv/bin/flask", "#!/usr/bin/env python\n").file("app/.venv/bin/activate", "")
    }

    /// Plans with these lines of `[app.python]`; nothing is compiled, as nobody here could.
    fn plan(&self, lines: &str) -> Result<Plan, String> {
        let text = format!(
            "name = \"shop\"\nversion = \"1\"\n[app.python]\ncompile = false\n{}",
            lines.replace("PYTHON", "interpreter = \"../python/bin/python3.11\"")
        );
        fs::write(self.path("app/kitbag.toml"), text).expect("a manifest");
        let options = PlanOptions { output: Some(self.path("out")), quiet: true, ..PlanOptions::default() };
        let folder = self.0.path().display().to_string();
        plan(&self.path("app"), &options).map_err(|failure| failure.render(false).replace(&folder, "DIR"))
    }

    #[track_caller]
    fn error(&self, lines: &str, expected: &[&str]) {
        let message = self.plan(lines).map(|plan| format!("{plan:?}")).expect_err("the plan must fail");
        for text in expected {
            assert!(message.contains(text), "expected `{text}`\n{message}");
        }
    }
}

fn paths(plan: &Plan) -> Vec<String> {
    plan.entries.iter().map(crate::plan::PlanEntry::shown).collect()
}

#[track_caller]
fn assert_has(plan: &Plan, there: &[&str], absent: &[&str]) {
    let paths = paths(plan);
    for path in there {
        assert!(paths.iter().any(|found| found == path), "{path} in {paths:#?}");
    }
    for path in absent {
        assert!(!paths.iter().any(|found| found == path), "no {path} in {paths:#?}");
    }
}

#[test]
fn it_brings_the_interpreter_its_library_and_the_project() {
    let plan = Project::new().plan("PYTHON\nentry = \"shop.main:run\"\n").unwrap();
    assert_has(
        &plan,
        &[
            "bin/python3.11",
            "bin/python3",
            "bin/python",
            "lib/python3.11/os.py",
            "lib/python3.11/site-packages/kitbag.pth",
            "app/shop/main.py",
            ".kitbag/python/shop",
        ],
        &[
            "lib/python3.11/test",
            "lib/python3.11/tkinter",
            "lib/python3.11/site-packages/own.py",
            "app/kitbag.toml",
        ],
    );
    let manifest = plan.manifest.to_text();
    for text in ["bin/python3.11", "-I", "${tree}/.kitbag/python/shop", "PYTHONHOME"] {
        assert!(manifest.contains(text), "{text} in {manifest}");
    }
    // Its own interpreter may know this one by another name.
    assert_eq!(plan.led["PYTHONNOUSERSITE"], "1");
    assert!(!manifest.contains("PYTHONNOUSERSITE"), "{manifest}");
}

#[test]
fn keep_brings_what_is_left_out_else() {
    let plan =
        Project::new().plan("PYTHON\nentry = \"-m shop.main\"\nkeep = [\"tests\", \"tkinter\"]\n").unwrap();
    assert_has(&plan, &["lib/python3.11/test/test_os.py", "lib/python3.11/tkinter/__init__.py"], &[]);
}

#[test]
fn a_virtual_environment_brings_packages_and_programs_but_nothing_that_names_the_host() {
    let project = Project::new();
    project.venv("3.11");
    let plan = project.plan("venv = \".venv\"\n[services.web]\nargv = [\"bin/flask\"]\n").unwrap();
    assert_has(
        &plan,
        &["bin/flask", "bin/python3", "lib/python3.11/site-packages/flask/__init__.py"],
        &["pyvenv.cfg", "bin/activate", "app/.venv", "app/.venv/pyvenv.cfg"],
    );
    let manifest = plan.manifest.to_text();
    assert!(manifest.contains("${tree}/app"), "{manifest}");
}

#[test]
fn links_that_lead_out_bring_what_they_lead_to_and_dangling_ones_are_left_out() {
    let project = Project::new();
    project.file("etc/sitecustomize.py", "").file("shared/data/table.txt", "");
    let library = "python/lib/python3.11";
    symlink(project.path("etc/sitecustomize.py"), project.path(&format!("{library}/sitecustomize.py")))
        .unwrap();
    symlink("../../../shared/data", project.path(&format!("{library}/data"))).unwrap();
    symlink("/nowhere/at/all", project.path(&format!("{library}/gone.py"))).unwrap();
    symlink("os.py", project.path(&format!("{library}/os2.py"))).unwrap();
    let plan = project.plan("PYTHON\nentry = \"-m shop.main\"\n").unwrap();
    let at = |path: &str| format!("lib/python3.11/{path}");
    assert_has(&plan, &[&at("sitecustomize.py"), &at("data/table.txt"), &at("os2.py")], &[&at("gone.py")]);
    let link = plan.entries.iter().filter(|entry| format!("{:?}", entry.kind).starts_with("Symlink"));
    let links: Vec<String> = link.map(crate::plan::PlanEntry::shown).collect();
    assert_eq!(links, ["bin/python", "bin/python3", &at("os2.py")]);
}

#[test]
fn what_is_missing_is_shown_with_what_was_meant() {
    let project = Project::new();
    project
        .error("interpreter = \"../python/bin/python3.12\"\n", &["did you mean `../python/bin/python3.11`?"]);
    project.error(
        "PYTHON\nvenv = \".venv\"\n",
        &["`.venv` is no virtual environment", "there is no such folder"],
    );
    project.error("PYTHON\nrequirements = \"requirments.txt\"\n", &["cannot read `requirments.txt`"]);
    project.error("PYTHON\nproject = \"shp\"\n", &["there is no folder `shp`", "did you mean"]);
    project.error("PYTHON\nkeep = [\"tkintr\"]\n", &["did you mean `tkinter`?"]);
    project.error("PYTHON\nkeeep = []\n", &["did you mean `keep`?"]);
    project.error("PYTHON\n", &["says nothing to start", "entry = "]);
    project.error("PYTHON\nvenv = \"a\"\nrequirements = \"b\"\n", &["both `venv` and `requirements`"]);
    let service = "[services.web]\nargv = [\"bin/python3\"]\n";
    project.error(&format!("PYTHON\nentry = \"-m shop.main\"\n{service}"), &["both `entry` and `services`"]);
}

#[test]
fn a_virtual_environment_of_another_interpreter_is_refused() {
    let project = Project::new();
    project.venv("3.10");
    let expected = ["kitbag.toml:6:8", "was made for another interpreter", "its packages are for python3.10"];
    project.error("PYTHON\nvenv = \".venv\"\n", &expected);
    fs::remove_file(project.path("app/.venv/bin/python")).unwrap();
    project.error("venv = \".venv\"\n", &["the interpreter of `.venv` is gone", "/somewhere"]);
}

#[test]
fn an_entry_that_is_not_there_is_shown_with_what_was_meant() {
    let project = Project::new();
    project.file("app/run.py", "").file("app/tools/__init__.py", "");
    for (entry, expected) in [
        ("shop.mian:run", "did you mean `shop.main:run`?"),
        ("shp.main:run", "did you mean `shop.main:run`?"),
        ("shop.main:rnu", "did you mean `shop.main:run`?"),
        ("-m shop.mian", "did you mean `-m shop.main`?"),
        ("-m tools", "`tools` is a package without `__main__.py`"),
        ("rnu.py", "did you mean `run.py`?"),
        ("shop.main", "expected `module:function`"),
        ("../x.py", "expected a path in the project's folder"),
        ("a b:c", "is no name"),
    ] {
        project.error(&format!("PYTHON\nentry = \"{entry}\"\n"), &["kitbag.toml:6:9", expected]);
    }
    for entry in ["shop.main:run", "-m shop.main", "run.py", "-m json.tool"] {
        project.plan(&format!("PYTHON\nentry = \"{entry}\"\n")).unwrap();
    }
}

#[test]
fn a_function_is_called_by_a_script_as_pip_writes_one() {
    let entry = Entry::parse("shop.main:App.run").unwrap();
    let text =
        "import sys\nfrom shop.main import App\n\nif __name__ == \"__main__\":\n    sys.exit(App.run())\n";
    assert_eq!(entry.launcher(), text);
}

#[test]
fn what_is_only_linked_to_is_found_in_the_project_or_warned_about() {
    let folder = TempDir::new().unwrap();
    let site = folder.path().join("site");
    let project = folder.path().join("project");
    fs::create_dir_all(project.join("src")).unwrap();
    fs::create_dir_all(&site).unwrap();
    fs::write(site.join("__editable__.shop-1.pth"), format!("{}\n", project.join("src").display())).unwrap();
    fs::write(site.join("other.pth"), "/elsewhere/lib\n").unwrap();
    fs::write(site.join("plain.pth"), "lib/below\nimport os\n").unwrap();
    let mut warnings = Vec::new();
    let (inside, mut left_out) = packages::linked(&site, &project, &mut warnings);
    left_out.sort();
    assert_eq!(inside, ["src"]);
    assert_eq!(left_out, ["/__editable__.shop-1.pth", "/other.pth"]);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("/elsewhere/lib"), "{warnings:?}");
}

#[test]
fn one_preset_a_bundle() {
    let text = "[app.python]\n[app.node]\n";
    let table = DeTable::parse(text).unwrap();
    let (manifest, errors) = read(text, &Spanned::new(table.span(), table.get_ref()));
    assert!(manifest.app.is_none());
    let source = Source { path: "kitbag.toml".to_owned(), text: text.to_owned() };
    let shown = Failure::manifest(source, errors).render(false);
    assert!(shown.contains("`[app]` has one preset"), "{shown}");
}

#[test]
fn patterns_of_every_preset_are_sound() {
    let mut expansion = Expansion::default();
    let all = super::LEFT_OUT.iter().flat_map(|(_, patterns)| *patterns).chain(super::NEVER);
    let all =
        all.chain(super::PACKAGES_LEFT_OUT).chain(super::PROGRAMS_LEFT_OUT).chain(super::PROJECT_LEFT_OUT);
    let all: Vec<&str> = all.copied().collect();
    expansion.include(&(0..0), Path::new("."), "", &all);
    for pattern in &expansion.includes[0].exclude {
        assert!(crate::tree::glob(pattern.get_ref()).is_ok(), "{pattern:?}");
    }
}
