//! Objects as tools render them.

use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use crate::{asset, output, overlay_folder};

/// What kustomize makes of an overlay.
pub fn kustomized(overlay: &str) -> Result<Vec<Value>> {
    let mut kubectl = Command::new(asset("kubectl")?);
    let text = output(kubectl.arg("kustomize").arg(overlay_folder(overlay)))?;
    Ok(parse(&text))
}

/// The documents of a stream of YAML that have something in them.
#[must_use]
pub fn parse(text: &str) -> Vec<Value> {
    let text = format!("\n{text}");
    let documents = text.split("\n---\n").filter(|text| {
        let mut lines = text.lines();
        lines.any(|line| !line.is_empty() && !line.starts_with('#'))
    });
    let value =
        |text| serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    documents.map(value).collect()
}

/// The first object of a kind.
#[must_use]
pub fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind}"))
}

/// What a container's `env` says, of what is said by its value.
#[must_use]
pub fn environment(container: &Value) -> Vec<(&str, &str)> {
    let entries = container["env"].as_array().into_iter().flatten();
    entries
        .filter_map(|entry| Some((entry["name"].as_str()?, entry["value"].as_str()?)))
        .collect()
}

/// A container's `args` as the kubelet gives them: `$(NAME)` is its variable's value.
#[must_use]
pub fn arguments(container: &Value) -> Vec<String> {
    let environment = environment(container);
    let words = container["args"].as_array().into_iter().flatten();
    let expanded = |word: &Value| {
        let word = word.as_str().expect("a word is text").to_owned();
        environment.iter().fold(word, |word, (name, value)| {
            word.replace(&format!("$({name})"), value)
        })
    };
    words.map(expanded).collect()
}
