//! Any text as a manifest, and as a template.
#![no_main]

use kitbag_format::Manifest;
use kitbag_format::template::Template;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let _ = Template::parse(input);
    let Ok(manifest) = Manifest::from_text(input) else { return };
    let fault = manifest.fault();
    let again = Manifest::from_text(&manifest.to_text()).expect("what is written can be read");
    assert_eq!((&again, again.fault()), (&manifest, fault));
    for (_, command) in manifest.commands() {
        for text in command.argv.iter().chain(command.env.values()).chain(&command.cwd) {
            let _ = Template::parse(text);
        }
    }
});
