//! What can be set: each is a flag and an environment variable.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand};
use projector::arguments;

use crate::{
    alerts::Webhook,
    audit::Level,
    expiry::Template,
    keys::KeysCommand,
    lifetime::{LIFETIME_SECONDS_MAX, Lifetimes},
    limits::Rate,
    tls::Tls,
};

/// Reads a whole number within a range. (What clap says itself of `x` is only that a digit is invalid.)
pub(crate) fn whole<T: FromStr + PartialOrd + Display + Copy + Send + Sync + 'static>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }
}

/// The credit ledger's HTTP service. Without arguments it keeps its data in ./ledger.db and listens on 127.0.0.1:8080.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Settings {
    /// Where the ledger is kept: `sqlite://FILE` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    #[arg(long, env, global = true, default_value = "sqlite://ledger.db", hide_env_values = true)]
    pub(crate) database_url: String,
    /// Where to listen. Without API keys only on a loopback address, where everything is open; port 0 takes a free one.
    #[arg(long, env, default_value = "127.0.0.1:8080", value_parser = address)]
    pub(crate) listen: SocketAddr,
    /// Serve HTTPS with the certificate (and its chain) of this PEM file; --tls-key goes with it. A renewed file is taken
    /// into use within a minute.
    #[arg(long, env, requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's private key, as PEM.
    #[arg(long, env, requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Publish every event to this NATS server, such as `nats://127.0.0.1:4222`. Empty: none.
    #[arg(long, env, hide_env_values = true)]
    pub(crate) nats_url: Option<String>,
    /// How long the NATS server remembers message ids, in milliseconds: only the second guard against publishing twice.
    #[arg(long, env, default_value_t = 120_000, value_parser = whole::<u64>(100..=3_600_000))]
    pub(crate) nats_duplicate_window_ms: u64,
    /// Take commands from the JetStream work queue `CREDIT_COMMANDS`, too. Whoever may publish there moves credits: NATS
    /// decides who that is, API keys do not.
    #[arg(long, env, value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) nats_commands: bool,
    /// How often a command from NATS may fail before it goes to the dead letters. What it has to wait for does not count.
    #[arg(long, env, default_value_t = 3, value_parser = whole::<u32>(1..=100))]
    pub(crate) nats_command_attempts: u32,
    /// How long one request may take, in seconds.
    #[arg(long, env, default_value_t = 30, value_parser = whole::<u64>(1..=600))]
    pub(crate) request_timeout_seconds: u64,
    /// Commands that may wait for the writer; more are refused with 503 `overloaded`.
    #[arg(long, env, default_value_t = 65_536, value_parser = whole::<u64>(10_000..=1_000_000))]
    pub(crate) queue_commands: u64,
    /// How many commands each account (user and credit type) may get, such as 5/10: 5 a second, burst 10. Left out: any
    /// number. A key may have a limit of its own.
    #[arg(long, env)]
    pub(crate) rate_limit: Option<Rate>,
    /// Post alerts to this URL, signed with the secret. Empty: none.
    #[arg(long, env, hide_env_values = true)]
    pub(crate) alert_webhook_url: Option<String>,
    /// What alerts to the webhook are signed with: 16 to 256 visible ASCII characters. The variable keeps it out of the
    /// list of processes.
    #[arg(long, env, hide_env_values = true)]
    pub(crate) alert_webhook_secret: Option<String>,
    /// After how many seconds a freeze expires that asks for no expiry itself. Left out: it stays open.
    #[arg(long, env, value_parser = whole::<u64>(1..=LIFETIME_SECONDS_MAX))]
    pub(crate) freeze_lifetime: Option<u64>,
    /// The longest time after which a freeze may expire, in seconds; one that asks for longer is refused.
    #[arg(long, env, default_value_t = LIFETIME_SECONDS_MAX, value_parser = whole::<u64>(1..=LIFETIME_SECONDS_MAX))]
    pub(crate) freeze_lifetime_max: u64,
    /// Ask this URL what became of an order before its freeze is released: `https://shop.example/orders/{business_id}`, where
    /// {business_code} and {user_id} may stand, too. It answers `{"status": "…"}`; `completed` and `paid` keep the freeze.
    #[arg(long, env, hide_env_values = true)]
    pub(crate) order_status_url: Option<String>,
    /// In how many seconds every read model is compared with a replay of the log once, partition after partition. 0: never.
    #[arg(long, env, default_value_t = 86_400, value_parser = whole::<u64>(0..=31_536_000))]
    pub(crate) proof_round: u64,
    /// At most so many events a second are replayed for that; fewer where a quarter of the time in the round is enough.
    #[arg(long, env, default_value_t = 20_000, value_parser = whole::<u32>(1..=100_000_000))]
    pub(crate) proof_rate: u32,
    /// A row that differs from the log by at most so many units is mended by itself; a larger difference locks its account.
    #[arg(long, env, default_value_t = 99, value_parser = whole::<u64>(0..=ledger_core::MAX_AMOUNT))]
    pub(crate) proof_mends_up_to: u64,
    /// What is written into the audit: every request that asks for a change, what administrators and the ledger itself do, or
    /// nothing.
    #[arg(long, env, value_enum, default_value_t = Level::All)]
    pub(crate) audit: Level,
    /// How many days rows of the audit are kept. 0: for ever.
    #[arg(long, env, default_value_t = 0, value_parser = whole::<u32>(0..=36_500))]
    pub(crate) audit_kept_days: u32,
    /// How the log is written.
    #[arg(long, env, default_value = "text", value_parser = ["text", "json"])]
    pub(crate) log_format: String,
    #[command(subcommand)]
    pub(crate) command: Option<Task>,
}

/// What the program can do besides serving.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    #[command(subcommand)]
    Keys(KeysCommand),
}

/// An address to listen on; `localhost` is the loopback address.
fn address(text: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().map_err(|_| "write ADDRESS:PORT, such as 127.0.0.1:8080".to_owned())
}

impl Settings {
    /// The settings of this process. `Err` is what is wrong with them, in one line without secrets.
    pub(crate) fn read() -> Result<Self, String> {
        arguments::read()
    }

    /// The NATS server to publish to, if there is one.
    pub(crate) fn nats(&self) -> Option<&str> {
        self.nats_url.as_deref().filter(|url| !url.is_empty())
    }

    /// Where alerts are posted to, if anywhere. `Err` is what is wrong with it, in one line without secrets.
    pub(crate) fn webhook(&self) -> Result<Option<Webhook>, String> {
        let secret = self.alert_webhook_secret.as_deref().filter(|secret| !secret.is_empty());
        match (self.alert_webhook_url.as_deref().filter(|url| !url.is_empty()), secret) {
            (Some(url), secret) => Webhook::new(url, secret).map(Some),
            (None, Some(_)) => Err("--alert-webhook-secret signs nothing without --alert-webhook-url".to_owned()),
            (None, None) => Ok(None),
        }
    }

    /// How long freezes may stay open.
    pub(crate) fn lifetimes(&self) -> Result<Lifetimes, String> {
        Lifetimes::new(self.freeze_lifetime, self.freeze_lifetime_max)
    }

    /// Where to ask what became of an order, if anywhere.
    pub(crate) fn order_status(&self) -> Result<Option<Template>, String> {
        self.order_status_url.as_deref().filter(|url| !url.is_empty()).map(Template::parse).transpose()
    }

    /// TLS, where it is set. `Err` is what is wrong with its files, in one line.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, String> {
        let files = self.tls_certificate.as_deref().zip(self.tls_key.as_deref());
        files.map(|(certificate, key)| Tls::load(certificate, key)).transpose()
    }

    /// The NATS server to take commands from, if any. `Err` is what is wrong with it, in one line.
    pub(crate) fn commands(&self) -> Result<Option<String>, String> {
        match (self.nats_commands, self.nats()) {
            (false, _) => Ok(None),
            (true, Some(url)) => Ok(Some(url.to_owned())),
            (true, None) => Err("--nats-commands needs --nats-url, which says where they come from".to_owned()),
        }
    }

    /// What forbids to start, in one line, by whether there is an API key that opens anything.
    pub(crate) fn check(&self, has_key: bool) -> Result<(), String> {
        if !self.listen.ip().is_loopback() && !has_key {
            return Err(format!(
                "--listen {} is refused: without API keys the ledger listens on loopback only, where everything is open; \
                 make a key with `api keys create`, or use 127.0.0.1:{}",
                self.listen,
                self.listen.port()
            ));
        }
        Ok(())
    }

    pub(crate) const fn deadline(&self) -> Duration {
        Duration::from_secs(self.request_timeout_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_has_a_default() {
        let settings = Settings::try_parse_from(["api"]).expect("parses");
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(settings.database_url, "sqlite://ledger.db");
        assert_eq!(settings.nats(), None);
        assert_eq!(settings.deadline(), Duration::from_secs(30));
    }

    #[test]
    fn localhost_is_an_address_and_nonsense_is_none() {
        let listen = |text| Settings::try_parse_from(["api", "--listen", text]).map(|settings| settings.listen);
        assert_eq!(listen("localhost:0").expect("parses").to_string(), "127.0.0.1:0");
        for text in ["localhost", "8080", "example.org:80", "127.0.0.1:99999", ""] {
            assert!(listen(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_of_the_range_is_told_the_range() {
        for text in ["x", "-1", "1.5", "", "601", "0"] {
            let refused = Settings::try_parse_from(["api", &format!("--request-timeout-seconds={text}")]);
            let error = refused.expect_err(text).to_string();
            assert!(error.contains("--request-timeout-seconds"), "{text}: {error}");
            assert!(error.contains("must be a whole number from 1 to 600") || text.is_empty(), "{text}: {error}");
        }
    }

    #[test]
    fn without_keys_only_loopback_addresses_are_listened_on() {
        for (address, fine) in
            [("127.0.0.1:0", true), ("[::1]:8080", true), ("0.0.0.0:8080", false), ("10.1.2.3:80", false)]
        {
            let settings = Settings::try_parse_from(["api", "--listen", address]).expect("parses");
            assert_eq!(settings.check(false).is_ok(), fine, "{address}");
            assert!(settings.check(true).is_ok(), "{address}");
        }
    }
}
