//! What was seen, as text that is TOML: the blocks can be pasted into kitbag.toml, everything else is a comment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::seen::{Seen, Touch};

/// So many files of one folder, and it is better taken as a whole, if they are a good part of it.
const HANDFUL: usize = 5;
/// A folder is taken as a whole if at least one in so many of its files was used.
const GOOD_PART: usize = 4;
/// No folder with a shorter path is taken as a whole: `/etc`, `/usr/lib`; the root counts.
const DEPTH: usize = 4;
/// More lines than this are counted, where they are of no great use.
const SHOWN: usize = 20;

/// The report, with a newline at its end.
pub fn render(seen: &Seen) -> String {
    let groups = Groups::of(seen);
    let mut text = String::new();
    groups.write_head(&mut text);
    groups.write_includes(&mut text, "Read:", &groups.read);
    groups.write_includes(&mut text, "Executed:", &groups.executed);
    groups.write_host(&mut text);
    groups.write_rest(&mut text);
    write_notes(&mut text, seen);
    text
}

/// Paths by what a person does about them.
#[derive(Default)]
struct Groups<'a> {
    /// Files that were read, or looked at, and folders that were listed.
    read: BTreeMap<&'a Path, &'a Touch>,
    /// Programs.
    executed: BTreeMap<&'a Path, &'a Touch>,
    /// What no include can help with: where it was written to.
    written: BTreeMap<&'a Path, &'a Touch>,
    /// Sockets.
    sockets: BTreeMap<&'a Path, &'a Touch>,
    /// Devices, pipes.
    devices: BTreeMap<&'a Path, &'a Touch>,
    /// Folders that were looked at, or are too much to be taken along.
    looked: BTreeMap<&'a Path, &'a Touch>,
    /// Below /proc and /sys.
    kernel: BTreeMap<&'a Path, &'a Touch>,
    /// What is not there on this machine either.
    missing: BTreeMap<&'a Path, &'a Touch>,
}

impl<'a> Groups<'a> {
    fn of(seen: &'a Seen) -> Self {
        let mut groups = Self::default();
        for (path, touch) in &seen.touched {
            groups.add(path, touch);
        }
        // `/bin/env` and `/usr/bin/env`, where one folder is a link to the other.
        for group in [&mut groups.read, &mut groups.executed] {
            let names: BTreeSet<&Path> = group.keys().copied().collect();
            group.retain(|path, _| {
                let real = fs::canonicalize(path).unwrap_or_default();
                real == *path || real.file_name() != path.file_name() || !names.contains(real.as_path())
            });
        }
        groups
    }

    fn add(&mut self, path: &'a Path, touch: &'a Touch) {
        let metadata = fs::metadata(path).ok();
        let is_dir = metadata.as_ref().is_some_and(fs::Metadata::is_dir);
        let is_file = metadata.as_ref().is_some_and(fs::Metadata::is_file);
        let group = if path.starts_with("/proc") || path.starts_with("/sys") {
            &mut self.kernel
        } else if !touch.found {
            &mut self.missing
        } else if touch.connected {
            &mut self.sockets
        } else if touch.written {
            &mut self.written
        } else if touch.executed {
            &mut self.executed
        } else if is_dir && !(touch.read && is_deep(path)) {
            &mut self.looked
        } else if path.starts_with("/dev") || (metadata.is_some() && !is_dir && !is_file) {
            &mut self.devices
        } else {
            &mut self.read
        };
        group.insert(path, touch);
    }

    /// Everything that is somebody's to do something about.
    fn outside(&self) -> impl Iterator<Item = &&'a Touch> {
        [&self.read, &self.executed, &self.written, &self.sockets, &self.devices]
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    fn write_head(&self, text: &mut String) {
        let (all, refused) = (self.outside().count(), self.outside().filter(|touch| touch.refused).count());
        let _ = if all == 0 {
            writeln!(text, "# kitbag run --hermetic: reached nothing outside of the bundle")
        } else {
            let paths = if all == 1 { "1 path" } else { &format!("{all} paths") };
            writeln!(
                text,
                "# kitbag run --hermetic: reached for {paths} outside of the bundle, {refused} refused.\n\
                 # This is TOML. Paste the blocks of what the app is to take along into kitbag.toml; it finds that at\n\
                 # ${{tree}}/`to`."
            )
        };
    }

    fn write_includes(&self, text: &mut String, title: &str, group: &BTreeMap<&Path, &Touch>) {
        if group.is_empty() {
            return;
        }
        let _ = write!(text, "\n# {title}\n");
        for (path, files) in collapsed(group.keys().copied()) {
            let below = group.iter().filter(|(touched, _)| touched.starts_with(&path));
            let touches: Vec<&Touch> = below.map(|(_, touch)| *touch).collect();
            let files = if files > 1 { format!("{files} files, ") } else { String::new() };
            let _ = writeln!(text, "\n# {files}{}", by(&touches));
            write_include(text, &path);
        }
    }

    fn write_host(&self, text: &mut String) {
        write_list(
            text,
            "Written to, made or removed. A place to write to is `${state}`:",
            &self.written,
            usize::MAX,
        );
        write_list(text, "Sockets:", &self.sockets, usize::MAX);
        write_list(text, "Devices:", &self.devices, usize::MAX);
        let mut paths = BTreeSet::new();
        for path in self.written.keys().chain(self.sockets.keys()).chain(self.devices.keys()) {
            // What was to be made needs its folder.
            let place = if fs::symlink_metadata(path).is_err() { path.parent() } else { Some(*path) };
            let place = place.filter(|place| place.is_absolute() && *place != Path::new("/"));
            paths.extend(place.and_then(string));
        }
        if !paths.is_empty() {
            let paths = paths.into_iter().collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                text,
                "\n# To let the app use these where they are, above the first line that begins with `[`:\n\
                 # host = [{paths}]"
            );
        }
    }

    fn write_rest(&self, text: &mut String) {
        write_list(text, "Folders that were looked at, or listed:", &self.looked, SHOWN);
        write_list(text, "Of the kernel, which every host has:", &self.kernel, SHOWN);
        write_list(text, "Not there, on this machine either:", &self.missing, SHOWN);
    }
}

fn write_notes(text: &mut String, seen: &Seen) {
    let mut list = |title: &str, programs: &mut dyn Iterator<Item = &String>| {
        let programs: Vec<&str> = programs.map(String::as_str).collect();
        if !programs.is_empty() {
            let _ = writeln!(text, "\n# {title} {}", programs.join(", ").escape_debug());
        }
    };
    list("32-bit programs, what they reach for is not listed:", &mut seen.narrow.iter());
    list("Setuid programs, run without their rights (no_new_privs):", &mut seen.setuid.iter());
    list("Still running when the app had ended, killed:", &mut seen.left_behind.iter());
}

/// Files, or folders in place of many files in them, with how many files each stands for.
fn collapsed<'a>(paths: impl Iterator<Item = &'a Path>) -> BTreeMap<PathBuf, usize> {
    let mut all: BTreeMap<PathBuf, usize> = paths.map(|path| (path.to_owned(), 1)).collect();
    loop {
        let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
        for path in all.keys() {
            if let Some(folder) = path.parent() {
                *folders.entry(folder.to_owned()).or_default() += 1;
            }
        }
        let whole = |(folder, used): &(&PathBuf, &usize)| {
            **used > HANDFUL
                && is_deep(folder)
                && fs::read_dir(folder).is_ok_and(|there| there.count() <= **used * GOOD_PART)
        };
        // A folder that was listed stands for what is in it, too.
        let listed = |(folder, _): &(&PathBuf, &usize)| all.contains_key(*folder) && is_deep(folder);
        let Some(folder) =
            folders.iter().rfind(|entry| whole(entry) || listed(entry)).map(|(folder, _)| folder)
        else {
            return all;
        };
        let files = all.iter().filter(|(path, _)| path.starts_with(folder)).map(|(_, files)| files).sum();
        all.retain(|path, _| !path.starts_with(folder));
        all.insert(folder.clone(), files);
    }
}

/// True for a folder that may be taken as a whole.
fn is_deep(folder: &Path) -> bool {
    folder.components().count() >= DEPTH
}

/// A block for one file or folder.
fn write_include(text: &mut String, path: &Path) {
    let place = path.strip_prefix("/").unwrap_or(path);
    let _ = match (string(path), string(place)) {
        (Some(from), Some(to)) if place != Path::new("") => {
            writeln!(text, "[[include]]\nfrom = {from}\nto = {to}")
        }
        _ => writeln!(
            text,
            "# {}: cannot be included under this name",
            path.display().to_string().escape_debug()
        ),
    };
}

/// Comment lines, one a path, `most` at most.
fn write_list(text: &mut String, title: &str, group: &BTreeMap<&Path, &Touch>, most: usize) {
    if group.is_empty() {
        return;
    }
    let _ = write!(text, "\n# {title}\n");
    for (path, touch) in group.iter().take(most) {
        let _ = writeln!(text, "#   {}  {}", path.display().to_string().escape_debug(), by(&[touch]));
    }
    if let Some(more @ 1..) = group.len().checked_sub(most) {
        let _ = writeln!(text, "#   … and {more} more");
    }
}

/// Who wanted it, and whether the kernel said no: `bin/app, refused`.
fn by(touches: &[&Touch]) -> String {
    let programs: BTreeSet<&str> =
        touches.iter().flat_map(|touch| &touch.programs).map(String::as_str).collect();
    let mut text = programs.iter().copied().take(HANDFUL).collect::<Vec<_>>().join(", ");
    if programs.len() > HANDFUL {
        let _ = write!(text, " and {} more", programs.len() - HANDFUL);
    }
    if touches.iter().any(|touch| touch.refused) {
        text.push_str(", refused");
    }
    text.escape_debug().to_string()
}

/// A TOML string; `None` for a path that is no text.
fn string(path: &Path) -> Option<String> {
    let mut text = String::from("\"");
    for letter in path.to_str()?.chars() {
        let _ = match letter {
            '"' | '\\' => write!(text, "\\{letter}"),
            letter if letter.is_control() => write!(text, "\\u{:04X}", u32::from(letter)),
            letter => write!(text, "{letter}"),
        };
    }
    text.push('"');
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::{Seen, Touch, render};

    #[track_caller]
    fn assert_toml(text: &str) -> toml::de::DeTable<'_> {
        toml::de::DeTable::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}")).into_inner()
    }

    fn touch(change: impl FnOnce(&mut Touch)) -> Touch {
        let mut touch = Touch { found: true, programs: ["bin/a".to_owned()].into(), ..Touch::default() };
        change(&mut touch);
        touch
    }

    #[test]
    fn nothing_is_one_line() {
        assert_eq!(
            render(&Seen::default()),
            "# kitbag run --hermetic: reached nothing outside of the bundle\n"
        );
    }

    #[test]
    fn any_name_gives_toml() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let mut seen = Seen::default();
        let names =
            ["plain", "new\nline", "quo\"te", "back\\slash", "é ü", "tab\t[[include]]", "esc\u{1b}[0m"];
        for name in names {
            let path = folder.path().join(name);
            std::fs::write(&path, "x").expect("a file");
            seen.touched.insert(path, touch(|touch| touch.read = true));
        }
        // One more file than used would be enough; these lie in a folder of their own that is too full.
        for number in 0..100 {
            std::fs::write(folder.path().join(format!("{number}")), "x").expect("a file");
        }
        seen.touched.insert("/no\nsuch".into(), touch(|touch| (touch.found, touch.read) = (false, true)));
        seen.touched.insert("@abs\0tract\n".into(), touch(|touch| touch.connected = true));
        seen.touched.insert("/proc/x\r".into(), touch(|touch| touch.read = true));
        seen.left_behind.push("bin/new\nline (7)".to_owned());
        let text = render(&seen);
        let table = assert_toml(&text);
        let includes = table["include"].get_ref().as_array().expect("includes");
        let from: Vec<&str> = includes
            .iter()
            .map(|include| {
                include.get_ref().as_table().expect("a table")["from"].get_ref().as_str().expect("text")
            })
            .collect();
        let mut expected: Vec<String> =
            names.iter().map(|name| folder.path().join(name).display().to_string()).collect();
        expected.sort();
        assert_eq!(from, expected, "{text}");
    }

    #[test]
    fn lists_that_are_of_little_use_are_cut() {
        let mut seen = Seen::default();
        for number in 0..30 {
            let path = format!("/no/such/{number:02}").into();
            seen.touched.insert(path, touch(|touch| (touch.found, touch.looked) = (false, true)));
        }
        let text = render(&seen);
        assert!(text.contains("/no/such/19") && !text.contains("/no/such/20"), "{text}");
        assert!(text.ends_with("#   … and 10 more\n"), "{text}");
        assert!(text.starts_with("# kitbag run --hermetic: reached nothing outside"), "{text}");
    }
}
