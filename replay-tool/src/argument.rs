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
