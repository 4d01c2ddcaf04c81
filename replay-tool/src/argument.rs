//! What several commands take: accounts, times, names.

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use ledger_core::{Account, Timestamp};

/// `USER/CREDIT_TYPE`; the last slash parts them, as a user's id is likelier to hold one.
pub(crate) fn parse_account(text: &str) -> Result<Account, String> {
    let (user_id, credit_type) =
        text.rsplit_once('/').ok_or_else(|| "write USER/CREDIT_TYPE, such as u1/points".to_owned())?;
    Account::new(user_id, credit_type).map_err(|invalid| invalid.to_string())
}

/// RFC 3339, or what databases and spreadsheets write without a zone, which is taken as UTC; a date is its beginning.
pub(crate) fn parse_time(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    let zoned = DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros());
    let plain = || {
        let formats = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"];
        let time = formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
        let date = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
        time.or_else(date).map(|time| time.and_utc().timestamp_micros())
    };
    zoned
        .or_else(plain)
        .and_then(Timestamp::from_micros)
        .ok_or_else(|| format!("{text:?} is no time; write 2026-11-20T12:00:00Z or 2026-11-20"))
}

/// A count that is not zero.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "write a whole number from 1, such as 50".to_owned())
}

/// A number of seconds.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "write a whole number of seconds, such as 300".to_owned())
}

/// Where a service is.
pub(crate) fn parse_service_url(text: &str) -> Result<String, String> {
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return Err("write where the service is, such as http://127.0.0.1:8080".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Who acts, as the events will say.
pub(crate) fn parse_actor(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().count() > 128 || text.chars().any(char::is_control) {
        return Err("must have 1 to 128 characters, none of them a control character".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_parted_at_the_last_slash() {
        let account = parse_account("shop/u1/points").expect("an account");
        assert_eq!((&**account.user_id(), &**account.credit_type()), ("shop/u1", "points"));
        for text in ["u1", "u1/", "/points", ""] {
            assert!(parse_account(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_read_with_and_without_a_zone() {
        let noon = Timestamp::parse("2026-11-20T12:00:00Z").expect("a time");
        for text in ["2026-11-20T13:00:00+01:00", "2026-11-20 12:00:00", "2026-11-20T12:00:00.000"] {
            assert_eq!(parse_time(text), Ok(noon), "{text}");
        }
        assert_eq!(parse_time("2026-11-20"), Ok(Timestamp::parse("2026-11-20T00:00:00Z").expect("a time")));
        assert!(parse_time("yesterday").is_err());
    }
}
