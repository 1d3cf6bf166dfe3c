//! Keys of the file: which there are, how their values look, and which one a mistyped one was meant to be.

use toml::{Table, Value};

/// A key and its value.
struct Key {
    name: &'static str,
    form: Form,
    /// How it may look.
    example: &'static str,
}

/// What a value is.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// Not negative, at most this.
    Number(i64),
    Texts,
    Tables,
}

/// Keys at the top.
const TOP: [Key; 20] = [
    text("token_file", "\"/etc/wice/token\""),
    text("interface", "\"wice0\""),
    text("name", "\"lab-a\""),
    text("state_dir", "\"/var/lib/wice\""),
    text("run_dir", "\"/run/wice\""),
    number("listen_port", u16::MAX as i64, "51821"),
    number("mtu", u16::MAX as i64, "1392"),
    texts("stun", "[\"stun:stun.example:3478\"]"),
    Key {
        name: "turn",
        form: Form::Tables,
        example: "[[turn]] on a line of its own, and below it url, username and password_file",
    },
    texts("accept_routes", "[\"10.0.0.0/8\"]"),
    texts("advertise_routes", "[\"10.1.0.0/16\"]"),
    text("proxy", "\"http://proxy.example:3128\""),
    text("ca_file", "\"/etc/ssl/lab.pem\""),
    text("port_mapping", "\"auto\""),
    text("log_level", "\"info\""),
    text("log_format", "\"json\""),
    text("metrics", "\"127.0.0.1:9586\""),
    text("wireguard", "\"auto\""),
    text("private_key_file", "\"/etc/wireguard/private.key\""),
    text("direct", "\"auto\""),
];
/// Keys of a `[[turn]]`.
const TURN: [Key; 3] = [
    text("url", "\"turn:turn.example:3478\""),
    text("username", "\"lab\""),
    text("password_file", "\"/etc/wice/turn.secret\""),
];

const fn text(name: &'static str, example: &'static str) -> Key {
    Key {
        name,
        form: Form::Text,
        example,
    }
}

const fn texts(name: &'static str, example: &'static str) -> Key {
    Key {
        name,
        form: Form::Texts,
        example,
    }
}

const fn number(name: &'static str, most: i64, example: &'static str) -> Key {
    Key {
        name,
        form: Form::Number(most),
        example,
    }
}

impl Key {
    fn fits(&self, value: &Value) -> bool {
        match self.form {
            Form::Text => value.is_str(),
            Form::Number(most) => value.as_integer().is_some_and(|n| (0..=most).contains(&n)),
            Form::Texts => value
                .as_array()
                .is_some_and(|array| array.iter().all(Value::is_str)),
            Form::Tables => value
                .as_array()
                .is_some_and(|array| array.iter().all(Value::is_table)),
        }
    }

    fn expected(&self) -> String {
        let (name, example) = (self.name, self.example);
        match self.form {
            Form::Text => format!("it is a text between quotes, like {name} = {example}"),
            Form::Number(most) => {
                format!("it is a number from 0 to {most}, like {name} = {example}")
            }
            Form::Texts => format!("it is a list of texts, like {name} = {example}"),
            Form::Tables => format!("write {example}"),
        }
    }
}

/// A mistyped key differs in at most a third of its letters from the one that was meant.
const FAR: usize = 3;

/// The first key that does not exist, and what to say of it.
pub(super) fn unknown(table: &Table) -> Option<(String, String)> {
    let top = table.keys().find(|key| !has(&TOP, key));
    if let Some(key) = top {
        return Some((key.clone(), hint(key, &TOP)));
    }
    servers(table).find_map(|server| {
        let key = server.keys().find(|key| !has(&TURN, key))?;
        Some((format!("turn.{key}"), hint(key, &TURN)))
    })
}

/// The first key whose value has the wrong form, with the value, and how it should look.
pub(super) fn misshapen(table: &Table) -> Option<(String, Value, String)> {
    let wrong = |table: &Table, keys: &[Key], prefix: &str| {
        keys.iter().find_map(|key| {
            let value = table.get(key.name).filter(|value| !key.fits(value))?;
            Some((
                format!("{prefix}{}", key.name),
                value.clone(),
                key.expected(),
            ))
        })
    };
    wrong(table, &TOP, "")
        .or_else(|| servers(table).find_map(|server| wrong(server, &TURN, "turn.")))
}

/// The first required key that a `[[turn]]` lacks.
pub(super) fn missing(table: &Table) -> Option<(String, String)> {
    servers(table).find_map(|server| {
        let key = TURN.iter().find(|key| !server.contains_key(key.name))?;
        Some((format!("turn.{}", key.name), key.expected()))
    })
}

/// The line, from 1, on which a key is given a value.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let name = key.rsplit('.').next().unwrap_or(key);
    let gives = |line: &str| {
        let line = line.trim_start().trim_start_matches('[');
        line.strip_prefix(name)
            .is_some_and(|rest| rest.trim_start().starts_with(['=', ']']))
    };
    text.lines().position(gives).map(|index| index + 1)
}

fn servers(table: &Table) -> impl Iterator<Item = &Table> {
    let servers = table.get("turn").and_then(Value::as_array);
    servers.into_iter().flatten().filter_map(Value::as_table)
}

fn has(keys: &[Key], name: &str) -> bool {
    keys.iter().any(|key| key.name == name)
}

fn hint(name: &str, known: &[Key]) -> String {
    let nearest = known
        .iter()
        .map(|key| (distance(name, key.name), key.name))
        .min()
        .filter(|(distance, _)| *distance * FAR <= name.chars().count().max(FAR));
    match nearest {
        Some((_, nearest)) => format!("did you mean {nearest}?"),
        None => {
            let names: Vec<&str> = known.iter().map(|key| key.name).collect();
            format!("keys are {}", names.join(", "))
        }
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
    fn a_key_is_found_where_it_is_given() {
        let text = "# mtu = 1\nmtu_x = 2\n  mtu= 3\n[[turn]]\nurl =4";
        assert_eq!(line_of(text, "mtu"), Some(3));
        assert_eq!(line_of(text, "turn"), Some(4));
        assert_eq!(line_of(text, "turn.url"), Some(5));
        assert_eq!(line_of(text, "name"), None);
    }

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
