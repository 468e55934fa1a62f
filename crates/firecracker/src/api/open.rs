//! Objects that take unknown fields and keep them.

use serde_json::{Map, Value};

/// Fields that this smartvm does not know, kept as they came.
pub type Extra = Map<String, Value>;

/// Defines a struct that Firecracker reads without refusing unknown fields.
///
/// Like serde's derive it takes an object or an array of the fields in order, and refuses a field that
/// comes twice; unlike it, what is unknown is kept in `extra`. (`#[serde(flatten)]` would lose the array
/// form and the place of an error.) Fields that are `None` are not written. `as "key"` gives a field another
/// name in JSON; `(or value)` makes it optional, and not written when it has that value.
macro_rules! open_struct {
    (
        $(#[$meta:meta])*
        pub struct $Name:ident {
            $($(#[$field_meta:meta])* $field:ident $(as $key:literal)? $((or $default:expr))?: $Type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[cfg_attr(test, derive(proptest_derive::Arbitrary))]
        pub struct $Name {
            $($(#[$field_meta])* pub $field: $Type,)*
            /// Fields that this smartvm does not know.
            #[cfg_attr(test, proptest(strategy = "crate::api::open::any_extra()"))]
            pub extra: $crate::api::Extra,
        }

        impl serde::Serialize for $Name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap;
                let mut map = serializer.serialize_map(None)?;
                $(if !($crate::api::open::Skip::skip(&self.$field) $(|| self.$field == $default)?) {
                    map.serialize_entry($crate::api::open::key!($field $($key)?), &self.$field)?;
                })*
                for (key, value) in &self.extra {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $Name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use $crate::api::open::{key, present};
                struct Reader;

                impl<'de> serde::de::Visitor<'de> for Reader {
                    type Value = $Name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("struct ", stringify!($Name)))
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$Name, A::Error> {
                        $(let mut $field: Option<$Type> = None;)*
                        let mut extra = $crate::api::Extra::new();
                        while let Some(key) = map.next_key::<String>()? {
                            match key.as_str() {
                                $(key!($field $($key)?) => {
                                    if $field.is_some() {
                                        let key = key!($field $($key)?);
                                        return Err(serde::de::Error::duplicate_field(key));
                                    }
                                    $field = Some(map.next_value()?);
                                })*
                                _ => {
                                    extra.insert(key, map.next_value()?);
                                }
                            }
                        }
                        $(let $field = $field$(.or(Some($default)))?;)*
                        Ok($Name { $($field: present($field, key!($field $($key)?))?,)* extra })
                    }

                    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<$Name, A::Error> {
                        $(let $field: Option<$Type> = seq.next_element()?;
                        let $field = $field$(.or(Some($default)))?;)*
                        let extra = $crate::api::Extra::new();
                        Ok($Name { $($field: present($field, key!($field $($key)?))?,)* extra })
                    }
                }

                deserializer.deserialize_any(Reader)
            }
        }
    };
}
pub(crate) use open_struct;

/// A field's name in JSON.
macro_rules! key {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}
pub(crate) use key;

/// The value of a field, or what its absence means: `None` for an `Option`, an error for all else.
pub(crate) fn present<'de, T: serde::Deserialize<'de>, E: serde::de::Error>(
    value: Option<T>,
    field: &'static str,
) -> Result<T, E> {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, UnitDeserializer};
    let absent: UnitDeserializer<Error> = ().into_deserializer();
    value.map_or_else(|| T::deserialize(absent).map_err(|_| E::missing_field(field)), Ok)
}

/// Whether a field is left out.
pub(crate) trait Skip {
    fn skip(&self) -> bool {
        false
    }
}

impl<T> Skip for Option<T> {
    fn skip(&self) -> bool {
        self.is_none()
    }
}

impl<T> Skip for Vec<T> {}
impl Skip for String {}
impl Skip for u64 {}
impl Skip for u32 {}
impl Skip for super::CpuidRegister {}
impl Skip for super::BootSource {}

#[cfg(test)]
pub(crate) fn any_extra() -> impl proptest::strategy::Strategy<Value = Extra> {
    use proptest::prelude::*;
    proptest::collection::vec(("x_[a-z]{1,6}", any::<Option<u32>>()), 0..3)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key, value.into())).collect())
}
