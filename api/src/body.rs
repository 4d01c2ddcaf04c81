//! Bodies, read strictly: every error names its field, nothing unknown is passed over, nothing is converted.

use std::{borrow::Cow, collections::HashSet, fmt};

use ledger_core::{Amount, text};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::problem::Problem;

/// What a fault of a whole object is called by.
pub(crate) const WHOLE: &str = "body";
/// How deep metadata may nest: JSON readers often stop at 128 levels, and answers nest it in some of their own.
const DEPTH_MAX: usize = 100;

/// The fields of an object, each as its very text, in the order of `names`.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    names: &'static [&'static str],
    values: Vec<Option<&'a RawValue>>,
}

/// Reads an object whose fields are all among `names`. A fault in the text of a value is that of its field, a fault
/// elsewhere that of the whole, which is called `body`.
pub(crate) fn read<'a>(json: &'a [u8], names: &'static [&'static str]) -> Result<Fields<'a>, Problem> {
    let (mut refusal, mut inside) = (None, None);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let seed = FieldsSeed { names, refusal: &mut refusal, inside: &mut inside };
    let values = seed.deserialize(&mut deserializer);
    let values = values.and_then(|values| deserializer.end().map(|()| values));
    match (values, refusal) {
        (Ok(values), _) => Ok(Fields { names, values }),
        (Err(_), Some((field, reason))) => Err(Problem::invalid(field, reason)),
        (Err(error), None) => Err(match inside {
            Some(field) => Problem::invalid(field, format!("is not JSON: {error}")),
            None => Problem::invalid(WHOLE, format!("is not a JSON object: {error}")),
        }),
    }
}

struct FieldsSeed<'r> {
    names: &'static [&'static str],
    /// The field that is at fault, and why: serde's own errors are only text.
    refusal: &'r mut Option<(String, String)>,
    /// The field whose value is being read.
    inside: &'r mut Option<&'static str>,
}

impl<'a> DeserializeSeed<'a> for FieldsSeed<'_> {
    type Value = Vec<Option<&'a RawValue>>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for FieldsSeed<'_> {
    type Value = Vec<Option<&'a RawValue>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = vec![None; self.names.len()];
        while let Some(key) = map.next_key::<Cow<'a, str>>()? {
            let Some(index) = self.names.iter().position(|name| *name == key) else {
                let reason = format!("is not a field of this; there are {}", self.names.join(", "));
                *self.refusal = Some((shortened(&key), reason));
                return Err(A::Error::custom("unknown field"));
            };
            if values[index].is_some() {
                *self.refusal = Some((self.names[index].to_owned(), "is there twice".to_owned()));
                return Err(A::Error::custom("duplicate field"));
            }
            *self.inside = Some(self.names[index]);
            values[index] = Some(map.next_value::<&RawValue>()?);
            *self.inside = None;
        }
        Ok(values)
    }
}

/// A name that a caller made up may be of any length.
fn shortened(name: &str) -> String {
    name.chars().filter(|character| !character.is_control()).take(64).collect()
}

impl<'a> Fields<'a> {
    /// The field's text; absent when it was left out or is `null`.
    fn text(&self, name: &'static str) -> Option<&'a str> {
        let index = self.names.iter().position(|known| *known == name)?;
        self.values[index].map(RawValue::get).filter(|text| *text != "null")
    }

    pub(crate) fn has(&self, name: &'static str) -> bool {
        self.text(name).is_some()
    }

    /// Refuses a field that has no meaning in this command.
    pub(crate) fn refuse(&self, names: &[&'static str], why: &str) -> Result<(), Problem> {
        match names.iter().find(|name| self.has(name)) {
            Some(name) => Err(Problem::invalid(*name, why)),
            None => Ok(()),
        }
    }

    /// A string, or nothing.
    pub(crate) fn string(&self, name: &'static str) -> Result<Option<String>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let string: String =
            serde_json::from_str(text).map_err(|_| Problem::invalid(name, "must be a string of valid Unicode"))?;
        if string.contains('\0') {
            return Err(Problem::invalid(name, "must not contain NUL"));
        }
        Ok(Some(string))
    }

    /// A string that must be there.
    pub(crate) fn required_string(&self, name: &'static str) -> Result<String, Problem> {
        self.string(name)?.ok_or_else(|| missing(name))
    }

    /// A whole number, written with digits alone.
    pub(crate) fn number(&self, name: &'static str) -> Result<Option<u64>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits && number <= ledger_core::MAX_AMOUNT => Ok(Some(number)),
            _ => Err(Problem::invalid(name, format!("must be a whole number from 0 to {}", ledger_core::MAX_AMOUNT))),
        }
    }

    /// An amount.
    pub(crate) fn amount(&self, name: &'static str) -> Result<Option<Amount>, Problem> {
        if !self.has(name) {
            return Ok(None);
        }
        let refused = || {
            let reason = format!("must be a JSON integer from 1 to {}, such as 500", ledger_core::MAX_AMOUNT);
            Problem::invalid(name, reason)
        };
        let units = self.number(name).map_err(|_| refused())?.ok_or_else(refused)?;
        Amount::new(units).map(Some).map_err(|_| refused())
    }

    pub(crate) fn required_amount(&self, name: &'static str) -> Result<Amount, Problem> {
        self.amount(name)?.ok_or_else(|| missing(name))
    }

    pub(crate) fn boolean(&self, name: &'static str) -> Result<Option<bool>, Problem> {
        match self.text(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(Problem::invalid(name, "must be true or false")),
        }
    }

    pub(crate) fn uuid(&self, name: &'static str) -> Result<Option<Uuid>, Problem> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        let refused = || Problem::invalid(name, "must be a UUID such as 0190d5a6-5d2c-8f3e-9a63-0c2b6f6f2d11");
        uuid(&text).map(Some).ok_or_else(refused)
    }

    /// A JSON object of at most 4 KiB, kept as its very text.
    pub(crate) fn object(&self, name: &'static str) -> Result<Option<&'a str>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        if text.len() > text::METADATA_BYTES_MAX {
            return Err(Problem::invalid(
                name,
                format!("must have at most {} bytes of JSON", text::METADATA_BYTES_MAX),
            ));
        }
        if !text.starts_with('{') {
            return Err(Problem::invalid(name, "must be a JSON object"));
        }
        sound(text, 1).map_err(|reason| Problem::invalid(name, reason))?;
        Ok(Some(text))
    }

    /// The elements of an array, each as its very text; 1 to `greatest` of them.
    pub(crate) fn elements(&self, name: &'static str, greatest: usize) -> Result<Vec<&'a RawValue>, Problem> {
        let text = self.text(name).ok_or_else(|| missing(name))?;
        if !text.starts_with('[') {
            return Err(Problem::invalid(name, "must be an array"));
        }
        let mut elements = Elements { found: Vec::new(), greatest };
        let read = elements.deserialize(&mut serde_json::Deserializer::from_str(text));
        match read {
            Ok(()) if !elements.found.is_empty() => Ok(elements.found),
            // The text is JSON, so nothing but its length can be at fault.
            _ => Err(Problem::invalid(name, format!("must have 1 to {greatest} elements"))),
        }
    }
}

/// Takes the elements of an array up to a bound: an array of a large body may have millions.
struct Elements<'a> {
    found: Vec<&'a RawValue>,
    greatest: usize,
}

impl<'a> DeserializeSeed<'a> for &mut Elements<'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for &mut Elements<'a> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element()? {
            if self.found.len() == self.greatest {
                return Err(A::Error::custom("too long"));
            }
            self.found.push(element);
        }
        Ok(())
    }
}

/// A UUID in the form that answers have.
pub(crate) fn uuid(text: &str) -> Option<Uuid> {
    if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }
}

/// A field that must be there and is not.
pub(crate) fn missing(name: &'static str) -> Problem {
    Problem::invalid(name, "is required")
}

/// Finds what cannot be stored or read back by everyone in an object or array: NUL, half of a surrogate pair, names that
/// are there twice, deep nesting. Numbers stay text, however many digits they have. The text of a level is read once for
/// each level above it, which the bounds on its length and depth keep small.
fn sound(text: &str, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("must nest at most {DEPTH_MAX} levels"));
    }
    // The place within this level says nothing to somebody who sent it within a larger text.
    let level: Level<'_> = serde_json::from_str(text)
        .map_err(|error| error.to_string().split(" at line ").next().unwrap_or_default().to_owned())?;
    for value in level.0 {
        match value.as_bytes().first() {
            Some(b'{' | b'[') => sound(value, depth + 1)?,
            Some(b'"') => match serde_json::from_str::<String>(value) {
                Ok(string) if string.contains('\0') => return Err("must not contain NUL".to_owned()),
                Ok(_) => {}
                Err(_) => return Err("must be of valid Unicode".to_owned()),
            },
            _ => {}
        }
    }
    Ok(())
}

/// The values of one object or array; the names of an object are checked on the way.
struct Level<'a>(Vec<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for Level<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LevelVisitor).map(Level)
    }
}

struct LevelVisitor;

impl<'a> Visitor<'a> for LevelVisitor {
    type Value = Vec<&'a str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object or an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(element) = elements.next_element::<&RawValue>()? {
            values.push(element.get());
        }
        Ok(values)
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut seen, mut values) = (HashSet::new(), Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if name.contains('\0') {
                return Err(A::Error::custom("must not contain NUL"));
            }
            values.push(map.next_value::<&RawValue>()?.get());
            if !seen.insert(name) {
                return Err(A::Error::custom("must not have the same name twice in one object"));
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests;
