//! A Python project: its packages, and what it seems to start.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use toml::de::DeTable;

use super::{Draft, folder_name, list, names, quoted};
use crate::cli::Kind;

/// Files that make a folder a Python project.
const MARKS: &[&str] =
    &["pyproject.toml", "requirements.txt", "setup.py", "setup.cfg", "Pipfile", "manage.py"];
/// Folders that hold no code of the app.
const SKIPPED: &[&str] =
    &["tests", "test", "docs", "node_modules", "build", "dist", "migrations", "__pycache__"];
/// Scripts that people start.
const SCRIPTS: &[&str] = &["main.py", "app.py", "cli.py", "run.py", "__main__.py"];
/// What Django's own template of a project leads to.
const DATABASE: &str = "its database lies in the project, which is read-only in a bundle: let the settings take its path \
    from a variable, `env = { DATABASE = \"${state}/db.sqlite3\" }`";
/// So deep modules are looked for.
const DEPTH: usize = 3;

/// The project of a folder.
pub fn look(dir: &Path) -> Option<Draft> {
    let all = names(dir);
    let venv = venv(dir, &all);
    let scripts: Vec<&String> = all.iter().filter(|name| name.ends_with(".py")).collect();
    let mark = MARKS.iter().find(|mark| all.iter().any(|name| name == *mark));
    if mark.is_none() && venv.is_none() && scripts.is_empty() {
        return None;
    }
    let mut draft = Draft::new(Kind::Python);
    let project = Project::read(dir, venv.as_deref());
    draft.head(
        project.name.as_deref().unwrap_or(&folder_name(dir)),
        project.version.as_deref().unwrap_or("1.0.0"),
    );
    draft.line("");
    draft.line("# The interpreter with its standard library, the packages, and this folder as `app/`.");
    draft.line("[app.python]");
    packages(&mut draft, &all, venv.as_deref(), &project);
    let source = if dir.join("src").is_dir() && has_modules(&dir.join("src")) { "src" } else { "" };
    if !source.is_empty() {
        draft.line("project = \"src\"");
        draft.found.push("its modules in `src`".to_owned());
    }
    start(&mut draft, &project, &dir.join(source), source.is_empty().then_some(dir));
    draft.sets();
    Some(draft)
}

/// A virtual environment: usual names first.
fn venv(dir: &Path, all: &[String]) -> Option<String> {
    let is_venv = |name: &&str| dir.join(name).join("pyvenv.cfg").is_file();
    let usual = [".venv", "venv", "env"];
    usual.into_iter().chain(all.iter().map(String::as_str)).find(is_venv).map(str::to_owned)
}

fn packages(draft: &mut Draft, all: &[String], venv: Option<&str>, project: &Project) {
    let has = |wanted: &str| all.iter().any(|name| name == wanted);
    let requirements = if has("requirements.txt") {
        Some("requirements.txt")
    } else if project.has_dependencies {
        Some("pyproject.toml")
    } else {
        None
    };
    let found = requirements.or_else(|| MARKS.iter().copied().find(|mark| has(mark)));
    draft.found.extend(found.map(|name| format!("`{name}`")));
    if let Some(venv) = venv {
        draft.found.push(format!("the virtual environment `{venv}`"));
        draft.line(format!("venv = {}", quoted(venv)));
        if let Some(requirements) = requirements {
            draft.line("# In its place: installed by pip when packing, and remembered.");
            draft.line(format!("# requirements = {}", quoted(requirements)));
            draft.guessed.push(format!("what is installed in `{venv}` is what it needs; `requirements` would install `{requirements}`"));
        }
        return;
    }
    draft.line("# interpreter = \"/usr/bin/python3\"");
    if let Some(requirements) = requirements {
        draft.line(format!("requirements = {}", quoted(requirements)));
    }
}

/// What the project says of itself.
#[derive(Debug, Default)]
struct Project {
    name: Option<String>,
    version: Option<String>,
    /// pyproject.toml lists dependencies.
    has_dependencies: bool,
    /// `module:function` of its first command.
    script: Option<String>,
    /// Names of the packages that it needs, in small letters.
    needs: BTreeSet<String>,
}

impl Project {
    fn read(dir: &Path, venv: Option<&str>) -> Self {
        let mut project = Self::default();
        let text = fs::read_to_string(dir.join("pyproject.toml")).unwrap_or_default();
        if let Ok(table) = DeTable::parse(&text)
            && let Some(about) = table.get_ref().get("project").and_then(|about| about.get_ref().as_table())
        {
            let field = |name: &str| about.get(name)?.get_ref().as_str().map(str::to_owned);
            (project.name, project.version) = (field("name"), field("version"));
            let list = about.get("dependencies").and_then(|list| list.get_ref().as_array());
            let list =
                list.into_iter().flat_map(|list| list.iter()).filter_map(|item| item.get_ref().as_str());
            project.needs.extend(list.filter_map(requirement));
            project.has_dependencies = !project.needs.is_empty();
            let scripts = about.get("scripts").and_then(|scripts| scripts.get_ref().as_table());
            let script = scripts.and_then(|scripts| scripts.iter().next());
            project.script = script.and_then(|(_, value)| value.get_ref().as_str().map(str::to_owned));
        }
        let list = fs::read_to_string(dir.join("requirements.txt")).unwrap_or_default();
        project.needs.extend(list.lines().filter_map(requirement));
        for name in venv.map(|venv| installed(&dir.join(venv))).unwrap_or_default() {
            project.needs.insert(name);
        }
        project
    }

    fn needs(&self, name: &str) -> bool {
        self.needs.contains(name)
    }
}

/// The package that a line of requirements names (PEP 508).
fn requirement(line: &str) -> Option<String> {
    let line = line.trim();
    let end =
        line.find(|letter: char| !letter.is_alphanumeric() && !"-_.".contains(letter)).unwrap_or(line.len());
    let name = line[..end].to_lowercase().replace('_', "-");
    (!name.is_empty() && !name.starts_with('-')).then_some(name)
}

/// Names of what is installed in a virtual environment.
fn installed(venv: &Path) -> Vec<String> {
    let lib = venv.join("lib");
    let folders = names(&lib).into_iter().flat_map(|python| names(&lib.join(python).join("site-packages")));
    let info =
        folders.filter_map(|name| Some(name.strip_suffix(".dist-info")?.split('-').next()?.to_lowercase()));
    info.map(|name| name.replace('_', "-")).collect()
}

fn has_modules(dir: &Path) -> bool {
    names(dir).iter().any(|name| name.ends_with(".py") || dir.join(name).join("__init__.py").is_file())
}

/// What it starts: a web app that is served, a command, a package or a script. `top` is the folder where scripts lie,
/// if they go along.
fn start(draft: &mut Draft, project: &Project, source: &Path, top: Option<&Path>) {
    if let Some(settings) = top.and_then(|top| django_settings(&top.join("manage.py"))) {
        draft.found.push("Django".to_owned());
        let text = fs::read_to_string(source.join(settings.replace('.', "/")).with_extension("py"));
        if text.is_ok_and(|text| text.contains("db.sqlite3")) {
            draft.hints.push(DATABASE.to_owned());
        }
        return serve(draft, django(project, &settings));
    }
    let mut apps = Vec::new();
    web_apps(source, "", DEPTH, &mut apps);
    apps.sort_by_key(|app| (app.module.matches('.').count(), app.is_factory));
    if let Some(app) = apps.first() {
        draft.found.push(format!("{} in `{}`", app.framework, app.module));
        for other in &apps[1..] {
            draft.guessed.push(format!("`{}` is served, not `{}`", app.target(), other.target()));
        }
        return serve(draft, server(project, app));
    }
    let (entry, why) = if let Some(script) = &project.script {
        (
            script.split('[').next().unwrap_or_default().trim().to_owned(),
            "its first command in pyproject.toml",
        )
    } else if let Some(package) =
        names(source).iter().find(|name| source.join(name).join("__main__.py").is_file())
    {
        (format!("-m {package}"), "a package with `__main__.py`")
    } else {
        match top.and_then(script) {
            Some(script) => (script, "a script"),
            None => return nothing_to_start(draft),
        }
    };
    draft.line("# A tool: the bundle behaves as this. `module:function`, `-m module` or a script.");
    draft.line(format!("entry = {}", quoted(&entry)));
    draft.guessed.push(format!(
        "it is a tool that starts `{entry}`, {why}; for a server write `[services.web]` in place of `entry`"
    ));
}

fn nothing_to_start(draft: &mut Draft) {
    draft.line("# What a tool starts: `module:function`, `-m module` or a script.");
    draft.line("# entry = \"shop.main:run\"");
    // A top-level key stands before the first table.
    let at = draft.text.find("\n\n").map_or(0, |at| at + 1);
    draft.text.insert_str(at, "# The interpreter alone, until `entry` says what is started; then this line goes.\ncommand = [\"bin/python3\"]\n");
    draft.guessed.push(
        "nothing: no web app, command, package or script was found, so it starts Python itself".to_owned(),
    );
    draft.hints.push("say in `entry` what is started, and take `command` out".to_owned());
}

fn script(dir: &Path) -> Option<String> {
    let all = names(dir);
    let usual = SCRIPTS.iter().find(|script| all.iter().any(|name| name == *script));
    let mut others = all
        .iter()
        .filter(|name| name.ends_with(".py") && !matches!(name.as_str(), "setup.py" | "conftest.py"));
    usual.map(ToString::to_string).or_else(|| others.next().cloned())
}

/// A command and why it is that one.
struct Served {
    argv: Vec<String>,
    why: String,
    hint: Option<String>,
}

fn serve(draft: &mut Draft, served: Served) {
    draft.line("");
    draft.line("[services.web]");
    draft.line(format!("argv = {}", list(&served.argv)));
    draft.port(8000);
    draft.guessed.push(served.why);
    draft.hints.extend(served.hint);
}

/// Where it listens, in three forms.
const LISTEN: &str = "${port.http:listen}";
const HOST: &str = "${port.http:host}";
const PORT: &str = "${port.http}";

/// Which port that is, for people.
const WHICH: &str = "on port 8000 if that is free, or the one that PORT names";

fn python(args: &[&str]) -> Vec<String> {
    ["bin/python3"].iter().chain(args).map(ToString::to_string).collect()
}

fn gunicorn(target: &str) -> Served {
    Served {
        argv: python(&["-m", "gunicorn", "--bind", LISTEN, target]),
        why: format!("gunicorn serves `{target}` {WHICH}"),
        hint: None,
    }
}

fn uvicorn(target: &str, is_factory: bool) -> Served {
    let mut argv = python(&["-m", "uvicorn", "--host", HOST, "--port", PORT]);
    argv.extend(is_factory.then(|| "--factory".to_owned()));
    argv.push(target.to_owned());
    Served { argv, why: format!("uvicorn serves `{target}` {WHICH}"), hint: None }
}

fn django(project: &Project, settings: &str) -> Served {
    let package = settings.rsplit_once('.').map_or(settings, |(package, _)| package);
    if project.needs("gunicorn") {
        return gunicorn(&format!("{package}.wsgi:application"));
    }
    if project.needs("uvicorn") {
        return uvicorn(&format!("{package}.asgi:application"), false);
    }
    Served {
        argv: python(&["${tree}/app/manage.py", "runserver", "--noreload", LISTEN]),
        why: format!("Django's own server serves it {WHICH}"),
        hint: Some(
            "that server is for trying out: add gunicorn to the requirements, and `init --force` again"
                .to_owned(),
        ),
    }
}

fn server(project: &Project, app: &App) -> Served {
    let target = app.target();
    let plain = format!("{}:{}", app.module, app.name);
    match app.framework {
        "Flask" if project.needs("gunicorn") => gunicorn(&target),
        "Flask" if project.needs("waitress") => {
            let listen = format!("--listen={LISTEN}");
            let mut argv = python(&["-m", "waitress", &listen]);
            argv.extend(app.is_factory.then(|| "--call".to_owned()));
            argv.push(plain.clone());
            Served { argv, why: format!("waitress serves `{plain}` {WHICH}"), hint: None }
        }
        "Flask" => Served {
            argv: python(&["-m", "flask", "--app", &plain, "run", "--host", HOST, "--port", PORT]),
            why: format!("Flask's own server serves `{plain}` {WHICH}"),
            hint: Some(
                "that server is for trying out: add gunicorn to the requirements, and `init --force` again"
                    .to_owned(),
            ),
        },
        _ => {
            let served = uvicorn(&plain, app.is_factory);
            let has = project.needs("uvicorn") || project.needs("uvicorn-standard");
            let hint = (!has).then(|| "uvicorn is not among the requirements: add it".to_owned());
            Served { hint, ..served }
        }
    }
}

/// The settings module that manage.py names.
fn django_settings(manage: &Path) -> Option<String> {
    let text = fs::read_to_string(manage).ok()?;
    let after = text.split("DJANGO_SETTINGS_MODULE").nth(1)?;
    let mut parts = after.split(['"', '\'']).filter(|part| !matches!(part.trim(), "" | ","));
    parts.next().map(str::to_owned)
}

/// A web app in a module.
#[derive(Debug)]
struct App {
    module: String,
    /// The variable, or the function that makes one.
    name: String,
    is_factory: bool,
    framework: &'static str,
}

impl App {
    /// As gunicorn wants it.
    fn target(&self) -> String {
        format!("{}:{}{}", self.module, self.name, if self.is_factory { "()" } else { "" })
    }
}

fn web_apps(dir: &Path, package: &str, depth: usize, apps: &mut Vec<App>) {
    for name in names(dir) {
        let path = dir.join(&name);
        let dotted =
            |name: &str| if package.is_empty() { name.to_owned() } else { format!("{package}.{name}") };
        if let Some(stem) = name.strip_suffix(".py") {
            let module = if stem == "__init__" { package.to_owned() } else { dotted(stem) };
            let text = fs::read_to_string(&path).unwrap_or_default();
            if !module.is_empty() && !stem.starts_with("test") && stem != "conftest" {
                apps.extend(web_app(&text).map(|(name, is_factory, framework)| App {
                    module,
                    name,
                    is_factory,
                    framework,
                }));
            }
        } else if depth > 0
            && path.is_dir()
            && !name.contains('.')
            && !SKIPPED.contains(&name.as_str())
            && !path.join("pyvenv.cfg").exists()
        {
            web_apps(&path, &dotted(&name), depth - 1, apps);
        }
    }
}

/// The app that a module makes: `app = Flask(…)` at its top level, or a function that makes one.
fn web_app(text: &str) -> Option<(String, bool, &'static str)> {
    let frameworks = ["Flask", "FastAPI", "Quart", "Starlette"];
    let framework = frameworks.into_iter().find(|name| text.contains(&format!("{name}(")))?;
    let made = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let name = name.split(':').next()?.trim();
        let is_name =
            !line.starts_with([' ', '\t', '#']) && !name.is_empty() && !name.contains([' ', '(', '.']);
        (is_name && value.contains(&format!("{framework}("))).then(|| name.to_owned())
    };
    if let Some(name) = text.lines().find_map(made) {
        return Some((name, false, framework));
    }
    let makers = ["create_app", "make_app", "get_app", "app_factory"];
    let maker = makers
        .into_iter()
        .find(|name| text.contains(&format!("\ndef {name}(")) || text.starts_with(&format!("def {name}(")))?;
    Some((maker.to_owned(), true, framework))
}
