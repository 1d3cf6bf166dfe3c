//! Colour, and tables that line up.

use std::io::IsTerminal as _;

/// Whether text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Heading,
    Good,
    Fair,
    Bad,
    Faint,
}

impl Style {
    /// No colour.
    pub const PLAIN: Self = Self { colour: false };
    /// Colour.
    pub const COLOUR: Self = Self { colour: true };

    /// Colour if standard output is a terminal that can, and the user has not set `NO_COLOR` (<https://no-color.org>).
    pub fn of_stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }

    pub(super) fn paint(self, text: &str, paint: Paint) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Heading => "1",
            Paint::Good => "32",
            Paint::Fair => "33",
            Paint::Bad => "31",
            Paint::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Columns two spaces apart, each as wide as its widest cell; a note stands below its row, under the second column.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
enum Row {
    Cells(Vec<(String, Option<Paint>)>),
    Note(String),
}

const GAP: usize = 2;

impl Table {
    pub(super) fn headed(names: &[&str]) -> Self {
        let heading = |name: &&str| ((*name).to_owned(), Some(Paint::Heading));
        Self {
            rows: vec![Row::Cells(names.iter().map(heading).collect())],
        }
    }

    pub(super) fn row(&mut self, cells: Vec<(String, Option<Paint>)>) {
        self.rows.push(Row::Cells(cells));
    }

    pub(super) fn note(&mut self, text: String) {
        self.rows.push(Row::Note(text));
    }

    pub(super) fn render(&self, style: Style) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            let Row::Cells(cells) = row else { continue };
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, (text, _)) in widths.iter_mut().zip(cells) {
                *width = (*width).max(text.chars().count());
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            match row {
                Row::Cells(cells) => out.push_str(&line(cells, &widths, style)),
                Row::Note(text) => {
                    let indent = widths.first().copied().unwrap_or_default() + GAP;
                    out.push_str(&" ".repeat(indent));
                    out.push_str(&style.paint(text, Paint::Faint));
                }
            }
            out.push('\n');
        }
        out
    }
}

/// Without blanks at the end.
fn line(cells: &[(String, Option<Paint>)], widths: &[usize], style: Style) -> String {
    let last = cells.iter().rposition(|(text, _)| !text.is_empty());
    let mut out = String::new();
    for (index, ((text, paint), width)) in cells.iter().zip(widths).enumerate() {
        let Some(last) = last.filter(|last| index <= *last) else {
            break;
        };
        out.push_str(&match paint {
            Some(paint) if !text.is_empty() => style.paint(text, *paint),
            Some(_) | None => text.clone(),
        });
        if index < last {
            out.push_str(&" ".repeat(width - text.chars().count() + GAP));
        }
    }
    out
}
