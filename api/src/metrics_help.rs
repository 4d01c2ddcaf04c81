//! What each metric means, for whoever looks at `/metrics`. The table in docs/operations.md says more of each.

const COUNTERS: &[(&str, &str)] = &[
    ("ledger_commands_total", "Commands that were done, by the event's type, as recorded or replayed"),
    ("ledger_problems_total", "Requests that were refused or failed, by the problem's code"),
    ("ledger_breaker_opened_total", "How often the database failed so often that requests were refused at once"),
    ("ledger_inconsistencies_total", "Inconsistencies that were found, by read model"),
    ("ledger_proof_partitions_total", "Partitions that were compared with the log, by outcome"),
    ("ledger_proof_events_total", "Events that were replayed for the continuous proof"),
    ("ledger_proof_mended_rows_total", "Rows of read models that the continuous proof made anew"),
    ("ledger_published_total", "Events that NATS acknowledged"),
    (
        "ledger_publisher_alerts_total",
        "How often publishing stopped because the stream and the log contradict each other",
    ),
    ("ledger_expiry_released_total", "Expired freezes that were released"),
    ("ledger_expiry_failures_total", "Expired freezes that could not be released, by reason"),
    ("ledger_nats_commands_total", "Commands from NATS, by outcome"),
    ("ledger_nats_commands_dead_total", "Commands from NATS that became dead letters, by command and code"),
    ("ledger_nats_consumer_renewed_total", "How often the consumer of the work queue was made anew"),
    ("ledger_alerts_total", "Alerts that were raised, by kind"),
    ("ledger_alerts_delivered_total", "Alerts that got to a target"),
    ("ledger_alerts_undelivered_total", "Alerts that were given up, by target: the log has them"),
    ("ledger_alert_webhook_failures_total", "Attempts to post an alert that failed"),
    ("ledger_audit_rows_total", "Rows that were written into the audit"),
    ("ledger_audit_dropped_total", "Rows of the audit that were lost"),
];

const GAUGES: &[(&str, &str)] = &[
    ("ledger_queue_room_commands", "Commands that may still come before others are refused as overloaded"),
    ("ledger_breaker_open", "1 while requests are refused at once because the database fails"),
    ("ledger_projector_lag_positions", "Events that the read models do not hold yet"),
    ("ledger_projector_lag_seconds", "Age of the oldest event that the read models do not hold yet"),
    ("ledger_projector_halted_partitions", "Partitions whose read models stopped at a contradiction"),
    ("ledger_inconsistencies_open", "Inconsistencies that nobody and nothing has resolved"),
    ("ledger_proof_round_seconds", "How long ago the partition was proved that has waited longest"),
    ("ledger_publisher_lag_positions", "Events that are not published yet"),
    ("ledger_publisher_lag_seconds", "Age of the oldest event that is not published yet"),
    ("ledger_expiry_due", "Freezes that are due and not released yet"),
    ("ledger_expiry_kept", "Expired freezes that are kept because their orders are paid"),
    ("ledger_nats_commands_pending", "Commands in the work queue, those under way too"),
];

const HISTOGRAMS: &[(&str, &str)] = &[(
    "ledger_command_seconds",
    "How long single commands took over HTTP, from the body read to the answer, by command",
)];

/// Tells the recorder, which shows it as `# HELP`.
pub(crate) fn describe() {
    for (name, meaning) in COUNTERS {
        metrics::describe_counter!(*name, *meaning);
    }
    for (name, meaning) in GAUGES {
        metrics::describe_gauge!(*name, *meaning);
    }
    for (name, meaning) in HISTOGRAMS {
        metrics::describe_histogram!(*name, *meaning);
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[test]
    fn a_metric_is_shown_with_what_it_means() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            super::describe();
            metrics::counter!("ledger_audit_rows_total").increment(1);
        });
        let shown = recorder.handle().render();
        assert!(shown.contains("# HELP ledger_audit_rows_total Rows that were written into the audit"), "{shown}");
    }
}
