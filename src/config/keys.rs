//! Keys of the file: which there are, and which one a mistyped one was meant to be.

use toml::Table;

/// Keys at the top.
const TOP: [&str; 17] = [
    "token_file",
    "interface",
    "name",
    "state_dir",
    "run_dir",
    "listen_port",
    "mtu",
    "stun",
    "turn",
    "accept_routes",
    "advertise_routes",
    "proxy",
    "ca_file",
    "log_level",
    "log_format",
    "metrics",
    "private_key_file",
];
/// Keys of a `[[turn]]`.
const TURN: [&str; 3] = ["url", "username", "password_file"];

/// A mistyped key differs in at most a third of its letters from the one that was meant.
const FAR: usize = 3;

/// The first key that does not exist, and what to say of it.
pub(super) fn unknown(table: &Table) -> Option<(String, String)> {
    let top = table.keys().find(|key| !TOP.contains(&key.as_str()));
    if let Some(key) = top {
        return Some((key.clone(), hint(key, &TOP)));
    }
    let servers = table.get("turn")?.as_array()?;
    servers.iter().find_map(|server| {
        let key = server
            .as_table()?
            .keys()
            .find(|k| !TURN.contains(&k.as_str()))?;
        Some((format!("turn.{key}"), hint(key, &TURN)))
    })
}

fn hint(key: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|other| (distance(key, other), other))
        .min()
        .filter(|(distance, _)| *distance * FAR <= key.chars().count().max(FAR));
    match nearest {
        Some((_, nearest)) => format!("did you mean {nearest}?"),
        None => format!("keys are {}", known.join(", ")),
    }
}

/// Insertions, deletions and replacements from one to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("mtu", "mtu", 0),
            ("listen_prot", "listen_port", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }
}
