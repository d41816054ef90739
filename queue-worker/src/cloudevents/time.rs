//! Times as RFC 3339 writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::EventError;

/// The first second that has five digits of a year.
const END: Duration = Duration::from_secs(253_402_300_800);

pub(super) fn format(time: SystemTime) -> Result<String, EventError> {
    match time.duration_since(UNIX_EPOCH) {
        // As short as it is exact, since not everybody reads nanoseconds.
        Ok(since) if since < END => Ok(match since.subsec_nanos() {
            0 => humantime::format_rfc3339_seconds(time),
            nanos if nanos.is_multiple_of(1_000_000) => humantime::format_rfc3339_millis(time),
            nanos if nanos.is_multiple_of(1_000) => humantime::format_rfc3339_micros(time),
            _ => humantime::format_rfc3339_nanos(time),
        }
        .to_string()),
        _ => Err(EventError::Time(format!("{time:?}"))),
    }
}

pub(super) fn parse(text: &str) -> Result<SystemTime, EventError> {
    read(text).ok_or_else(|| EventError::Time(text.to_owned()))
}

/// The zone is `Z` or an offset such as `+01:00`.
fn read(text: &str) -> Option<SystemTime> {
    let upper = text.to_ascii_uppercase();
    if upper.ends_with('Z') {
        return humantime::parse_rfc3339(&upper).ok();
    }
    let (local, zone) = upper.split_at_checked(upper.len().checked_sub(6)?)?;
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    let offset = Duration::from_secs((hours * 60 + minutes) * 60);
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    match zone.as_bytes().first()? {
        b'+' => local.checked_sub(offset),
        b'-' => local.checked_add(offset),
        _ => None,
    }
}

fn two_digits(text: &str) -> Option<u64> {
    let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_any_zone() {
        let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for text in
            ["2023-11-14T22:13:20Z", "2023-11-14t22:13:20z", "2023-11-14T23:43:20+01:30", "2023-11-14T17:13:20-05:00"]
        {
            assert_eq!(parse(text).unwrap(), at, "{text}");
        }
        assert_eq!(parse("2023-11-14T22:13:20.000000001+00:00").unwrap(), at + Duration::from_nanos(1));
        assert_eq!(parse(&format(at).unwrap()).unwrap(), at);
        for text in
            ["", "now", "2023-11-14T22:13:20", "2023-11-14", "2023-11-14T22:13:20+1:00", "2023-11-14T22:13:2ü+01:0"]
        {
            assert!(matches!(parse(text), Err(EventError::Time(shown)) if shown == text), "{text}");
        }
    }

    #[test]
    fn times_that_cannot_be_written_are_refused() {
        for time in [UNIX_EPOCH - Duration::from_secs(1), UNIX_EPOCH + END] {
            assert!(matches!(format(time), Err(EventError::Time(_))));
        }
        assert_eq!(format(UNIX_EPOCH + END - Duration::from_secs(1)).unwrap(), "9999-12-31T23:59:59Z");
    }
}
