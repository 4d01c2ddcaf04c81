//! The idempotency key that every command bears.

use std::sync::Arc;

use crate::{
    log::Hash,
    text::{self, BUSINESS_CODE_CHARS_MAX, ID_CHARS_MAX, InvalidField},
};

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
    let mut bytes = Vec::with_capacity(192);
    write_hashed(&mut bytes, code, id);
    of_hash(&Hash(*blake3::hash(&bytes).as_bytes()))
}

/// Appends what the hash of a key runs over.
pub fn write_hashed(bytes: &mut Vec<u8>, code: &str, id: &str) {
    bytes.extend_from_slice(b"ledger.business-key.v1");
    bytes.extend_from_slice(&(code.len() as u64).to_be_bytes());
    bytes.extend_from_slice(code.as_bytes());
    bytes.extend_from_slice(id.as_bytes());
}

/// [`BusinessKey::hash`] from the hash of what [`write_hashed`] wrote.
#[must_use]
pub fn of_hash(hash: &Hash) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|index| hash.0[index]))
}
