//! What a caller's text must be like to be stored.

use std::sync::Arc;

/// The longest `user_id`, `credit_type` and `business_id`, in characters.
pub const ID_CHARS_MAX: usize = 128;
/// The longest `business_code`, in characters.
pub const BUSINESS_CODE_CHARS_MAX: usize = 64;
/// The longest `description`, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 512;
/// The longest `metadata`, in bytes of JSON text.
pub const METADATA_BYTES_MAX: usize = 4096;

/// A field of a command that cannot be taken as it is, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct InvalidField {
    /// The field's name in the contract.
    pub field: &'static str,
    /// What it must be, as a phrase that follows the field's name.
    pub reason: String,
}

impl InvalidField {
    /// `field` cannot be taken because of `reason`.
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// An identifier: 1 ..= `chars_max` characters, none of them a control character.
pub fn identifier(field: &'static str, text: &str, chars_max: usize) -> Result<Arc<str>, InvalidField> {
    // A character is at least one byte, so the cheap test comes first and settles nearly every case.
    if text.is_empty() || (text.len() > chars_max && text.chars().count() > chars_max) {
        return Err(InvalidField::new(field, format!("must have 1 to {chars_max} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidField::new(field, "must not contain control characters"));
    }
    Ok(text.into())
}

/// Free text: at most [`DESCRIPTION_CHARS_MAX`] characters, anything but NUL (PostgreSQL cannot store it).
pub fn description(text: &str) -> Result<Arc<str>, InvalidField> {
    if text.len() > DESCRIPTION_CHARS_MAX && text.chars().count() > DESCRIPTION_CHARS_MAX {
        return Err(InvalidField::new("description", format!("must have at most {DESCRIPTION_CHARS_MAX} characters")));
    }
    if text.contains('\0') {
        return Err(InvalidField::new("description", "must not contain NUL"));
    }
    Ok(text.into())
}
