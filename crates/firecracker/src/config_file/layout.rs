//! Writing a value in the layout of another.

use serde_json::{Map, Value};

/// `written`, with its keys in the order of `original`, and with the nulls of `original`, which mean the same
/// as absence. New keys come last.
pub(super) fn arrange(written: Value, original: &Value) -> Value {
    match (written, original) {
        (Value::Object(mut written), Value::Object(original)) => {
            let mut arranged = Map::new();
            for (key, old) in original {
                match written.shift_remove(key) {
                    Some(new) => {
                        arranged.insert(key.clone(), arrange(new, old));
                    }
                    None if old.is_null() => {
                        arranged.insert(key.clone(), Value::Null);
                    }
                    // Empty in both: left out of what is written only because it says nothing.
                    None if old.as_array().is_some_and(Vec::is_empty) => {
                        arranged.insert(key.clone(), old.clone());
                    }
                    None => {}
                }
            }
            arranged.extend(written);
            Value::Object(arranged)
        }
        (Value::Array(written), Value::Array(original)) => {
            let old = original.iter().chain(std::iter::repeat(&Value::Null));
            Value::Array(written.into_iter().zip(old).map(|(new, old)| arrange(new, old)).collect())
        }
        (written, _) => written,
    }
}
