//! Rows as a statement's parameter: an array of a composite type, of which `unnest` makes rows at a half to a third of what an
//! array for each column costs the server. The types stand in `migrations/postgres/0006_rows.sql`.

use sqlx::{
    Encode, Postgres as Driver, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgBindIterExt, PgHasArrayType, PgTypeInfo, types::PgRecordEncoder},
};

/// A value of a composite type.
pub trait Record {
    /// The type's name.
    const TYPE: &'static str;

    /// Writes the type's columns, in their order.
    ///
    /// # Errors
    ///
    /// When a value is out of its column's range.
    fn encode(&self, row: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError>;
}

impl<T: Record> Record for &T {
    const TYPE: &'static str = T::TYPE;

    fn encode(&self, row: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        T::encode(self, row)
    }
}

/// Some records as one parameter.
pub fn records<T: Record>(rows: impl Iterator<Item = T>) -> impl for<'q> Encode<'q, Driver> + Type<Driver> {
    rows.map(Element).bind_iter()
}

/// An element of the array.
struct Element<T>(T);

impl<T: Record> Type<Driver> for Element<T> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name(T::TYPE)
    }
}

impl<T: Record> PgHasArrayType for Element<T> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of(T::TYPE)
    }
}

impl<T: Record> Encode<'_, Driver> for Element<T> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let mut row = PgRecordEncoder::new(buffer);
        self.0.encode(&mut row)?;
        row.finish();
        Ok(IsNull::No)
    }
}
