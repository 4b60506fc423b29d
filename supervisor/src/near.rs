//! What a person may have meant by a name that does not exist.

use kitbag_format::sort;

/// The first of `known` that begins so, or else is near to what was typed.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let known: Vec<&str> = known.into_iter().collect();
    let begins = |known: &&&str| typed.len() > 1 && known.starts_with(typed);
    known.iter().find(begins).or_else(|| known.iter().find(|known| is_near(typed, known))).copied()
}

/// One letter added, lost, or changed, or letters in another order.
fn is_near(typed: &str, known: &str) -> bool {
    let shared = typed.bytes().zip(known.bytes()).take_while(|(a, b)| a == b).count();
    let tail = typed.bytes().rev().zip(known.bytes().rev()).take_while(|(a, b)| a == b).count();
    let longest = typed.len().max(known.len());
    let letters = |word: &str| {
        let mut letters: Vec<u8> = word.bytes().collect();
        sort::sort(&mut letters);
        letters
    };
    (shared + tail + 1 >= longest && longest > 2) || letters(typed) == letters(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_find_what_was_meant() {
        let known = ["start", "stop", "status"];
        let found = ["stauts", "stp", "star", "stat", "unrelated", ""].map(|typed| nearest(typed, known));
        assert_eq!(found, [Some("status"), Some("stop"), Some("start"), Some("status"), None, None]);
    }
}
