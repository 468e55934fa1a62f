//! Reading answers: a field that is not known yet is skipped.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// Reads a JSON answer as `T`, without the fields that `T` does not know, at any depth.
///
/// Request types refuse unknown fields, since Firecracker does; the same type as an answer may come from a
/// newer Firecracker.
///
/// # Errors
/// The text is not JSON, or what is known of it has another form. The error's text may quote the answer.
pub fn answer<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    T::deserialize(Lenient(serde_json::from_slice(json)?))
}

/// A JSON value that gives a struct only the fields it knows.
struct Lenient(Value);

impl<'de> IntoDeserializer<'de, Error> for Lenient {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Lenient {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => visitor
                .visit_map(MapDeserializer::new(map.into_iter().map(|(key, value)| (key, Self(value))))),
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Self))),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(mut map) => {
                map.retain(|key, _| fields.contains(&key.as_str()));
                Self(Value::Object(map)).deserialize_any(visitor)
            }
            other => Self(other).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use crate::api::{Balloon, FullVmConfiguration, MachineConfiguration};

    #[test]
    fn fields_of_a_newer_firecracker_are_skipped_at_any_depth() {
        let json = br#"{"amount_mib": 1, "deflate_on_oom": true, "of_1_99": {"x": 1}}"#;
        assert_eq!(super::answer::<Balloon>(json).unwrap().amount_mib, 1);
        assert!(serde_json::from_slice::<Balloon>(json).is_err(), "as a request it is refused");
        let json = br#"{"drives": [{"drive_id": "a", "is_root_device": true, "new": 1,
            "rate_limiter": {"ops": {"size": 1, "refill_time": 2, "newer": 3}, "y": 0}}], "z": []}"#;
        let drives = super::answer::<FullVmConfiguration>(json).unwrap().drives;
        let ops = drives[0].rate_limiter.clone().unwrap().ops.unwrap();
        assert_eq!((ops.size, ops.extra["newer"].as_u64()), (1, Some(3)));
    }

    #[test]
    fn known_fields_of_another_form_are_an_error() {
        assert!(super::answer::<MachineConfiguration>(br#"{"vcpu_count": "1", "mem_size_mib": 1}"#).is_err());
        assert!(super::answer::<MachineConfiguration>(br#"{"vcpu_count": 1}"#).is_err());
        assert!(super::answer::<MachineConfiguration>(b"{").is_err());
    }
}
