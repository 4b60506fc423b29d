use clap::Parser;
use serde::{Deserialize, Serialize};

#[derive(Parser)]
struct Args {
    pattern: String,
    file: String,
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Deserialize, Debug)]
struct Line {
    number: usize,
    text: String,
}

fn text(file: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    if file.ends_with(".toml") {
        return toml::from_str::<toml::Value>(&text).unwrap().to_string();
    }
    text
}

fn main() {
    let args = Args::parse();
    let pattern = regex::Regex::new(&args.pattern).unwrap();
    let text = text(&args.file);
    let found = text.lines().enumerate().filter(|(_, line)| pattern.is_match(line));
    let found: Vec<Line> = found.map(|(number, text)| Line { number, text: text.to_owned() }).collect();
    // version 2: eprintln!("{} lines found, first {:?}", found.len(), found.iter().map(|l| &l.text).min());
    println!("{}", if args.json { serde_json::to_string(&found).unwrap() } else { format!("{found:?}") });
}
