//! Shapes that no event of the ledger has, whatever its account holds: a field that its type does not have, or lacks.

use crate::{amount::Amount, bare::BareEvent, event::EventType, rejection::Contradiction};

/// Whether the event's fields are those of its type.
pub(crate) fn check(event: &BareEvent<'_>) -> Result<(), Contradiction> {
    let wrong = |field, expected: &str, found: String| {
        Err(Contradiction { position: event.position, field, expected: expected.to_owned(), found })
    };
    let event_type = event.event_type;
    let name = event_type.name();
    let amount = event.amount.map(Amount::units);
    match (event_type, amount) {
        (EventType::Locked | EventType::Unlocked, Some(units)) => {
            return wrong("amount", &format!("nothing: the event is `{name}`"), units.to_string());
        }
        (EventType::Locked | EventType::Unlocked, None) | (_, Some(_)) => {}
        (_, None) => return wrong("amount", &format!("an amount: the event is `{name}`"), "nothing".to_owned()),
    }
    match (event_type, event.related_id) {
        (EventType::Unfrozen, None) => return wrong("related_id", "a freeze's id", "nothing".to_owned()),
        (EventType::Refunded, None) => return wrong("related_id", "a deduction's id", "nothing".to_owned()),
        (EventType::Credited | EventType::Frozen | EventType::Locked | EventType::Unlocked, Some(id)) => {
            return wrong("related_id", &format!("nothing: the event is `{name}`"), id.to_string());
        }
        _ => {}
    }
    if let Some(id) = event.related_id {
        let (partition, _, position) = id.locate();
        if partition != event.partition || position >= event.position {
            let expected = format!("the id of an earlier event of partition {}", event.partition);
            return wrong("related_id", &expected, id.to_string());
        }
    }
    let is_capture = event_type == EventType::Deducted && event.related_id.is_some();
    if event.released > 0 && !is_capture {
        return wrong("released", "0: only a capture releases besides", event.released.to_string());
    }
    if event.released > 0 && event.remaining != Some(0) {
        let found = in_words(event.remaining);
        return wrong("remaining", "0: a capture that releases, releases all that is left", found);
    }
    let is_about_original = event.related_id.is_some();
    let rest = match event_type {
        // What is left of the original: whether it is right, the original's own fold says.
        _ if is_about_original => {
            if event.remaining.is_none() {
                return wrong("remaining", "what is left of the original", "nothing".to_owned());
            }
            event.remaining
        }
        EventType::Frozen | EventType::Deducted => amount,
        _ => None,
    };
    if event.remaining != rest {
        return wrong("remaining", &in_words(rest), in_words(event.remaining));
    }
    if let Some(at) = event.expires_at {
        if event_type != EventType::Frozen {
            return wrong("expires_at", &format!("nothing: the event is `{name}`"), at.to_string());
        }
        if at <= event.recorded_at {
            return wrong("expires_at", &format!("a time after {}", event.recorded_at), at.to_string());
        }
    }
    Ok(())
}

fn in_words(units: Option<u64>) -> String {
    units.map_or_else(|| "nothing".to_owned(), |units| units.to_string())
}
