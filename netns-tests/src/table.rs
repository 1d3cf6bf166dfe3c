//! Times, told at the end of a test, whether it passed or not.

use std::io::Write as _;
use std::time::Duration;

/// Rows of one test; printed when dropped, past the harness that keeps a passing test's output.
#[derive(Debug)]
pub struct Table {
    title: String,
    rows: Vec<(String, String, String)>,
}

impl Table {
    /// An empty table.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: what was done, what came of it, how long it took.
    pub fn row(&mut self, what: impl Into<String>, came: impl Into<String>, took: Duration) {
        self.rows.push((what.into(), came.into(), seconds(took)));
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let width = |column: fn(&(String, String, String)) -> &String| {
            let widths = self.rows.iter().map(|row| column(row).chars().count());
            widths.max().unwrap_or_default()
        };
        let (first, second) = (width(|row| &row.0), width(|row| &row.1));
        let mut text = format!("\n  {}\n", self.title);
        for (what, came, took) in &self.rows {
            text.push_str(&format!("    {what:<first$}  {came:<second$}  {took:>8}\n"));
        }
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// Seconds with milliseconds.
pub fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}
