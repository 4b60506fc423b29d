//! Named sets: data that programs look for at run time and no ELF file names. `[closure] sets` asks for them; they come
//! in packages' usual places, with the variables that lead the bundle's programs there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kitbag_closure::FOLDER;
use toml::Spanned;

use crate::diagnostic::{Diagnostic, near_miss};
use crate::manifest::Include;
use crate::read::Text;

/// What one name stands for.
struct Set {
    name: &'static str,
    brings: &'static [Bring],
    /// The package that has it, for the error where it is missing.
    package: &'static str,
}

/// Files or a folder.
struct Bring {
    /// Where a distribution may have it. `LIB` stands for each of [`LIBRARIES`]. The first that exists is taken.
    from: &'static [&'static str],
    /// Its place in the tree.
    to: Place,
    exclude: &'static [&'static str],
    /// The variables that lead there.
    env: &'static [&'static str],
    /// Nothing is wrong if it is nowhere.
    optional: bool,
    /// A file that would belong to it and does not come along, with what to do instead.
    left: Option<(&'static str, &'static str)>,
}

/// A place in the tree.
enum Place {
    /// The same path.
    Same,
    /// This one.
    At(&'static str),
    /// Where the closure's loaders look (`docs/closure.md`), under this name.
    Library(&'static str),
}

/// Where distributions have libraries: Debian's multiarch folders, Fedora's and SUSE's, all others'.
const LIBRARIES: &[&str] =
    &["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];

const SETS: &[Set] = &[
    Set {
        name: "certificates",
        brings: &[Bring {
            from: &[
                "/etc/ssl/certs/ca-certificates.crt",
                "/etc/pki/tls/certs/ca-bundle.crt",
                "/etc/ssl/cert.pem",
            ],
            to: Place::At("etc/ssl/certs/ca-certificates.crt"),
            exclude: &[],
            env: &["SSL_CERT_FILE"],
            optional: false,
            left: None,
        }],
        package: "ca-certificates",
    },
    Set {
        name: "timezones",
        brings: &[Bring {
            from: &["/usr/share/zoneinfo"],
            to: Place::At("usr/share/zoneinfo"),
            exclude: &["/localtime", "/posix", "/right"],
            env: &["TZDIR", "PYTHONTZPATH"],
            optional: false,
            left: None,
        }],
        package: "tzdata",
    },
    Set {
        name: "locales",
        brings: &[Bring {
            from: &["/usr/lib/locale"],
            to: Place::At("usr/lib/locale"),
            exclude: &["/locale-archive"],
            env: &["LOCPATH"],
            optional: false,
            left: Some((
                "locale-archive",
                "make folders of those that are needed, with `localedef --no-archive`",
            )),
        }],
        package: "libc-bin or locales",
    },
    Set {
        name: "gconv",
        brings: &[Bring {
            from: &["LIB/gconv"],
            to: Place::Same,
            exclude: &["/gconv-modules.cache"],
            env: &["GCONV_PATH"],
            optional: false,
            left: None,
        }],
        package: "libc6",
    },
    Set {
        name: "nss",
        brings: &[
            nss(&["LIB/libnss_files.so.2"], "libnss_files.so.2"),
            nss(&["LIB/libnss_dns.so.2"], "libnss_dns.so.2"),
            nss(&["LIB/libnss_compat.so.2"], "libnss_compat.so.2"),
        ],
        package: "libc6",
    },
    Set {
        name: "terminfo",
        brings: &[
            Bring {
                from: &["/usr/share/terminfo"],
                to: Place::At("usr/share/terminfo"),
                exclude: &[],
                env: &["TERMINFO_DIRS"],
                optional: false,
                left: None,
            },
            // Debian has the most used ones apart from the others.
            Bring {
                from: &["/usr/lib/terminfo", "/lib/terminfo"],
                to: Place::At("usr/lib/terminfo"),
                exclude: &[],
                env: &["TERMINFO_DIRS"],
                optional: true,
                left: None,
            },
        ],
        package: "ncurses-base",
    },
];

const fn nss(from: &'static [&'static str], name: &'static str) -> Bring {
    Bring { from, to: Place::Library(name), exclude: &[], env: &[], optional: true, left: None }
}

/// What sets stand for.
#[derive(Debug, Default)]
pub struct Brought {
    /// What they bring into the tree.
    pub includes: Vec<Include>,
    /// Variables for every command; what the manifest sets goes before.
    pub env: BTreeMap<String, String>,
    /// One sentence each.
    pub warnings: Vec<String>,
}

/// Finds what `names` stand for, on the file system under `root`.
pub fn expand(names: &[Text], root: &Path) -> Result<Brought, Vec<Diagnostic>> {
    let (mut brought, mut errors) = (Brought::default(), Vec::new());
    for name in names {
        match SETS.iter().find(|set| set.name == name.get_ref()) {
            Some(set) => errors.extend(set.expand(name, root, &mut brought)),
            None => errors.push(unknown(name)),
        }
    }
    if errors.is_empty() { Ok(brought) } else { Err(errors) }
}

/// True for a place in the tree's own folder of kitbag that a set may have.
pub fn is_in_place(path: &[u8]) -> bool {
    let is_one = |bring: &Bring| match bring.to {
        Place::Library(name) => path == library(name).as_bytes(),
        Place::Same | Place::At(_) => false,
    };
    path == FOLDER || SETS.iter().flat_map(|set| set.brings).any(is_one)
}

/// The place of a library that the closure's loaders find.
fn library(name: &str) -> String {
    format!("{}/{name}", String::from_utf8_lossy(FOLDER))
}

fn unknown(name: &Text) -> Diagnostic {
    let names: Vec<&str> = SETS.iter().map(|set| set.name).collect();
    Diagnostic::new(format!("there is no set `{}`", name.get_ref()))
        .at(name.span(), "")
        .near(near_miss(name.get_ref(), names.iter().copied()))
        .help(format!("the sets are {}", names.join(", ")))
}

impl Set {
    /// Adds what it stands for; the error where nothing is there.
    fn expand(&self, name: &Text, root: &Path, brought: &mut Brought) -> Option<Diagnostic> {
        let before = brought.includes.len();
        for bring in self.brings {
            let Some((place, source)) = bring.find(root) else {
                if bring.optional {
                    continue;
                }
                return Some(self.missing(name, bring));
            };
            bring.lead(&place, &mut brought.env);
            brought.includes.push(bring.include(name, &place, &source));
            brought.warnings.extend(bring.left_out(&source));
        }
        (brought.includes.len() == before).then(|| self.missing(name, &self.brings[0]))
    }

    fn missing(&self, name: &Text, bring: &Bring) -> Diagnostic {
        Diagnostic::new(format!("the set `{}` is not on this machine", self.name))
            .at(name.span(), format!("expected at {}", bring.from.join(" or ").replace("LIB", LIBRARIES[0])))
            .help(format!("install the package {}", self.package))
    }
}

impl Bring {
    /// Its place in the tree, and where it is.
    fn find(&self, root: &Path) -> Option<(String, PathBuf)> {
        let candidates = self.from.iter().flat_map(|from| match from.strip_prefix("LIB") {
            Some(rest) => LIBRARIES.iter().map(|folder| format!("{folder}{rest}")).collect(),
            None => vec![(*from).to_owned()],
        });
        candidates.map(|path| (path.clone(), root.join(path.trim_start_matches('/')))).find_map(
            |(path, source)| {
                fs::metadata(&source).ok()?;
                let place = match self.to {
                    Place::Same => path.trim_start_matches('/').to_owned(),
                    Place::At(place) => place.to_owned(),
                    Place::Library(name) => library(name),
                };
                Some((place, source))
            },
        )
    }

    /// What is said if a part of it does not come along.
    fn left_out(&self, source: &Path) -> Option<String> {
        let (name, advice) = self.left?;
        let file = source.join(name);
        file.exists().then(|| format!("what is in {} does not come along: {advice}", file.display()))
    }

    /// Several places in one variable stand behind each other.
    fn lead(&self, place: &str, env: &mut BTreeMap<String, String>) {
        for variable in self.env {
            let path = format!("${{tree}}/{place}");
            env.entry((*variable).to_owned())
                .and_modify(|value| *value = format!("{value}:{path}"))
                .or_insert(path);
        }
    }

    fn include(&self, name: &Text, place: &str, source: &Path) -> Include {
        let text = |text: &str| Spanned::new(name.span(), text.to_owned());
        Include {
            from: text(&source.to_string_lossy()),
            to: place.to_owned(),
            exclude: self.exclude.iter().map(|pattern| text(pattern)).collect(),
            follow: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<Text> {
        names.iter().map(|name| Spanned::new(0..name.len(), (*name).to_owned())).collect()
    }

    #[test]
    fn a_set_brings_what_is_there_and_leads_to_it() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["usr/share/terminfo/x", "usr/lib/terminfo/l", "usr/lib64/gconv"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let brought = expand(&names(&["terminfo", "gconv"]), root.path()).unwrap();
        let places: Vec<&str> = brought.includes.iter().map(|include| include.to.as_str()).collect();
        assert_eq!(places, ["usr/share/terminfo", "usr/lib/terminfo", "usr/lib64/gconv"]);
        assert_eq!(brought.env["TERMINFO_DIRS"], "${tree}/usr/share/terminfo:${tree}/usr/lib/terminfo");
        assert_eq!(brought.env["GCONV_PATH"], "${tree}/usr/lib64/gconv");
    }

    #[test]
    fn what_is_not_there_and_what_is_no_set_are_errors() {
        let root = tempfile::tempdir().unwrap();
        let errors = expand(&names(&["timezones", "nss", "certficates"]), root.path()).unwrap_err();
        assert_eq!(errors.len(), 3);
        assert!(format!("{:?}", errors[0]).contains("tzdata"));
        assert!(format!("{:?}", errors[2]).contains("did you mean `certificates`?"));
    }
}
