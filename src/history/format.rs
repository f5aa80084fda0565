//! How numbers, sizes and times are written on the page.

/// A number of things.
pub(super) fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// The beginning of a digest, enough to tell two apart.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// A part of all, from 0 to 1.
pub(super) fn share([part, all]: [u64; 2]) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

/// A part of all in percent.
pub(super) fn percent(counts: [u64; 2]) -> String {
    format!("{:.1} %", 100.0 * share(counts))
}

/// A number without the zeros at its end.
pub(super) fn round(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes.
pub(super) fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes < 1e6 => format!("{:.0} kB", bytes / 1e3),
        bytes if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.2} GB", bytes / 1e9),
    }
}

/// Seconds.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 if seconds > 0.0 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 if whole.is_multiple_of(60) => format!("{} min", whole / 60),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Seconds since 1970, in UTC.
pub(super) fn date(time: u64) -> String {
    // Four digits of a year, whatever a file says.
    protocol::dcap::date(time.min(253_402_300_799))
        .replace('T', " ")
        .trim_end_matches('Z')
        .to_owned()
}
