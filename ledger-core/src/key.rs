//! The idempotency key that every command bears.

use std::sync::Arc;

use crate::text::{self, BUSINESS_CODE_CHARS_MAX, ID_CHARS_MAX, InvalidField};

/// Business codes with this prefix are the ledger's own.
pub const SYSTEM_CODE_PREFIX: &str = "system.";

/// What makes a command the same command however often it is sent: unique per account, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BusinessKey {
    code: Arc<str>,
    id: Arc<str>,
    /// See [`BusinessKey::hash`]: it is asked for often.
    hash: u64,
}

impl BusinessKey {
    /// A caller's key: `code` of 1–64 and `id` of 1–128 characters, without control characters; a code that begins with
    /// `system.` is refused.
    pub fn new(code: &str, id: &str) -> Result<Self, InvalidField> {
        if code.starts_with(SYSTEM_CODE_PREFIX) {
            return Err(InvalidField::new(
                "business_code",
                format!("must not begin with {SYSTEM_CODE_PREFIX}: those codes are the ledger's own"),
            ));
        }
        Self::reserved(code, id)
    }

    /// A key of the ledger itself, or one that was stored: like [`BusinessKey::new`], but `system.` codes are taken.
    pub fn reserved(code: &str, id: &str) -> Result<Self, InvalidField> {
        let code = text::identifier("business_code", code, BUSINESS_CODE_CHARS_MAX)?;
        Ok(Self::stored(code, text::identifier("business_id", id, ID_CHARS_MAX)?))
    }

    /// A key as it was stored; nothing is checked again.
    #[must_use]
    pub fn stored(code: Arc<str>, id: Arc<str>) -> Self {
        let hash = hash(&code, &id);
        Self { code, id, hash }
    }

    /// The kind of business step, such as `order.create`.
    #[must_use]
    pub fn code(&self) -> &Arc<str> {
        &self.code
    }

    /// The step's own identifier, such as an order number.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// 64 bits of BLAKE3 over code and id: where an index looks for this key. Two keys may share it, so whoever looks a
    /// key up compares the event that is found.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }
}

fn hash(code: &str, id: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"ledger.business-key.v1");
    hasher.update(&(code.len() as u64).to_be_bytes());
    hasher.update(code.as_bytes());
    hasher.update(id.as_bytes());
    let bytes = hasher.finalize();
    u64::from_be_bytes(std::array::from_fn(|index| bytes.as_bytes()[index]))
}
