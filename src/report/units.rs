//! Numbers as people read them.

use std::time::Duration;

/// So many of something: `1 peer`, `2 peers`.
pub fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// Bytes in binary units with two significant figures below ten: `88 MiB`, `1.2 GiB`, `4.0 KiB`, `512 B`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.5 would be shown as 1024.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// A time in its two largest units: `41 s`, `1m 2s`, `2h 4m`, `3d 1h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A round trip in milliseconds: `0.4 ms`, `12 ms`.
pub fn rtt(milliseconds: f64) -> String {
    if milliseconds < 0.95 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{milliseconds:.0} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4.0 KiB"),
            (3174, "3.1 KiB"),
            (1_048_575, "1.0 MiB"),
            (92_274_688, "88 MiB"),
            (1_288_490_189, "1.2 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
        for (seconds, text) in [
            (0, "0 s"),
            (41, "41 s"),
            (62, "1m 2s"),
            (7440, "2h 4m"),
            (262_800, "3d 1h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(rtt(0.42), "0.4 ms");
        assert_eq!(rtt(12.4), "12 ms");
    }
}
