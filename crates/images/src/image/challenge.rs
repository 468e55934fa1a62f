//! What a registry wants before it answers: the header `WWW-Authenticate`.
//!
//! Source: RFC 9110, section 11.6.1, and the distribution project's "Token Authentication Specification".

/// One way to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token that another server gives.
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The best of what the headers offer: a token, since a password then is sent less often.
    pub(super) fn best<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut best = None;
        for header in headers {
            for (scheme, parameters) in split(header) {
                let value = |name: &str| {
                    parameters
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.clone())
                };
                if scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = value("realm")
                {
                    return Some(Self::Bearer { realm, service: value("service") });
                }
                if scheme.eq_ignore_ascii_case("basic") {
                    best = Some(Self::Basic);
                }
            }
        }
        best
    }
}

type Offer = (String, Vec<(String, String)>);

/// The offers of a header: each a scheme and its parameters. What breaks the grammar ends the list.
fn split(header: &str) -> Vec<Offer> {
    let mut offers: Vec<Offer> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word_end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        if word.is_empty() {
            return offers;
        }
        match (after.strip_prefix('='), offers.last_mut()) {
            (Some(after), Some((_, parameters))) => {
                let Some((value, after)) = value(after) else { return offers };
                parameters.push((word.to_owned(), value));
                rest = after;
            }
            (Some(_), None) => return offers,
            (None, _) => {
                offers.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
}

/// A token or a quoted text, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, character) in quoted.char_indices() {
        match character {
            _ if escaped => {
                value.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &quoted[at + 1..])),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.into(), service: service.map(str::to_owned) })
    }

    #[test]
    fn tokens_are_preferred_and_quotes_are_understood() {
        let best = |headers: &[&str]| Challenge::best(headers.iter().copied());
        assert_eq!(
            best(&[
                r#"Bearer realm="https://auth.example/token?a=1,2",service="reg \"x\"",scope="repository:a:pull""#
            ]),
            bearer("https://auth.example/token?a=1,2", Some("reg \"x\""))
        );
        assert_eq!(best(&["bearer realm=https://a/t , Basic realm=x"]), bearer("https://a/t", None));
        assert_eq!(best(&["Basic realm=\"x\"", "Bearer realm=\"y\""]), bearer("y", None));
        assert_eq!(best(&["Negotiate, Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(best(&["Basic"]), Some(Challenge::Basic));
        for nothing in ["", "=", "Bearer", "Digest realm=x", "Bearer realm=\"open", "realm=x", ",,, ,"] {
            assert_eq!(best(&[nothing]), None, "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_its_end(text in "[a-zA-Z\"\\\\=, äß]{0,60}") {
            let _ = Challenge::best([text.as_str()].into_iter());
        }
    }
}
