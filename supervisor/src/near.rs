//! What a person may have meant by a name that does not exist.

/// The first of `known` that is near to what was typed.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().find(|known| is_near(typed, known))
}

/// One letter added, lost, or changed; letters in another order; or a beginning.
fn is_near(typed: &str, known: &str) -> bool {
    let shared = typed.bytes().zip(known.bytes()).take_while(|(a, b)| a == b).count();
    let tail = typed.bytes().rev().zip(known.bytes().rev()).take_while(|(a, b)| a == b).count();
    let longest = typed.len().max(known.len());
    let letters = |word: &str| {
        let mut letters: Vec<u8> = word.bytes().collect();
        letters.sort_unstable();
        letters
    };
    (shared >= 2 && shared == typed.len())
        || (shared + tail + 1 >= longest && longest > 2)
        || letters(typed) == letters(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_find_what_was_meant() {
        let known = ["status", "stop", "start"];
        let found = ["stauts", "stp", "star", "statu", "unrelated", ""].map(|typed| nearest(typed, known));
        assert_eq!(found, [Some("status"), Some("stop"), Some("start"), Some("status"), None, None]);
    }
}
