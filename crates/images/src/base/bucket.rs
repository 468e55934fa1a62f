//! What an S3-style bucket holds, read from the XML of its `list-type=2` answers.
//!
//! Only what these answers need of XML is understood: elements, text, the five entities and character references. There are
//! no document types, so nothing expands.

use url::Url;

use crate::download::{DownloadError, Downloader, Request, shown};
use crate::release::below;

use super::BaseError;

/// The most bytes of one answer. A thousand keys, which is as many as one answer has, need less than 1 MB.
const LARGEST_ANSWER: u64 = 4 << 20;

/// The most answers that one listing may go over, and the most bytes of them all.
const MOST_ANSWERS: usize = 50;
const LARGEST_LISTING: usize = 16 << 20;

/// The deepest nesting of elements.
const DEEPEST: usize = 16;

/// What lies below a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// Keys with their sizes in bytes.
    pub(super) objects: Vec<Object>,
    /// What lies deeper, as prefixes that end in the delimiter.
    pub(super) prefixes: Vec<String>,
    next: Option<String>,
}

/// One object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) size: Option<u64>,
}

/// Lists what lies below `prefix`, in the first of `bases` that answers; which one that was is told as well.
pub(super) async fn list(downloader: &Downloader, bases: &[Url], prefix: &str) -> Result<Listing, BaseError> {
    let mut whole = Listing::default();
    let mut token: Option<String> = None;
    let mut bytes = 0;
    for _ in 0..MOST_ANSWERS {
        let question = |base: &Url| {
            let mut url = below(base, &[""]);
            let mut query = url.query_pairs_mut();
            query.append_pair("list-type", "2").append_pair("prefix", prefix).append_pair("delimiter", "/");
            if let Some(token) = &token {
                query.append_pair("continuation-token", token);
            }
            drop(query);
            url
        };
        let urls: Vec<Url> = bases.iter().map(question).collect();
        let Some(url) = urls.first().cloned() else { break };
        let what = format!("the list of {prefix}");
        let request = Request { urls, ..Request::new(what, url.clone(), LARGEST_ANSWER) };
        let answer = downloader.bytes(&request).await?;
        let page = Listing::parse(&answer).map_err(|why| BaseError::BadListing { url: shown(&url), why })?;
        bytes += answer.len();
        if bytes > LARGEST_LISTING {
            break;
        }
        whole.objects.extend(page.objects);
        whole.prefixes.extend(page.prefixes);
        token = page.next;
        if token.is_none() {
            return Ok(whole);
        }
    }
    Err(BaseError::BadListing { url: prefix.to_owned(), why: "it does not end".into() })
}

impl From<DownloadError> for BaseError {
    fn from(source: DownloadError) -> Self {
        Self::Download(source)
    }
}

impl Listing {
    /// Reads one answer.
    pub(super) fn parse(xml: &[u8]) -> Result<Self, String> {
        let xml = std::str::from_utf8(xml).map_err(|_| "it is not UTF-8".to_owned())?;
        let mut listing = Self::default();
        let mut truncated = false;
        let mut object = Object::default();
        elements(xml, |path, text| {
            match path {
                ["ListBucketResult", "Contents", "Key"] => object.key = text,
                ["ListBucketResult", "Contents", "Size"] => object.size = text.trim().parse().ok(),
                ["ListBucketResult", "Contents"] => listing.objects.push(std::mem::take(&mut object)),
                ["ListBucketResult", "CommonPrefixes", "Prefix"] => listing.prefixes.push(text),
                ["ListBucketResult", "IsTruncated"] => truncated = text.trim() == "true",
                ["ListBucketResult", "NextContinuationToken"] => listing.next = Some(text),
                ["ListBucketResult", ..] => {}
                _ => return Err("it is not a ListBucketResult".to_owned()),
            }
            Ok(())
        })?;
        listing.next = listing.next.filter(|_| truncated);
        if truncated && listing.next.is_none() {
            return Err("it says that there is more, and not how to get it".into());
        }
        Ok(listing)
    }
}

/// Calls `ended` for each element when it ends, with the names from the root to it and its own text.
fn elements(xml: &str, mut ended: impl FnMut(&[&str], String) -> Result<(), String>) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let mut text = String::new();
    let mut rest = xml;
    let mut roots = 0;
    while let Some(at) = rest.find('<') {
        if !open.is_empty() {
            unescape(&rest[..at], &mut text)?;
        }
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            let end = comment.find("-->").ok_or("a comment does not end")?;
            rest = &comment[end + 3..];
            continue;
        }
        let end = rest.find('>').ok_or("a tag does not end")?;
        let tag = &rest[1..end];
        rest = &rest[end + 1..];
        if tag.starts_with('?') {
            continue;
        }
        if tag.starts_with('!') {
            return Err("it has a document type or marked section".into());
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.last() != Some(&name.trim_end()) {
                return Err("its tags do not match".into());
            }
            ended(&open, std::mem::take(&mut text))?;
            open.pop();
            continue;
        }
        let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let name = tag.split_ascii_whitespace().next().ok_or("a tag has no name")?;
        if open.is_empty() {
            roots += 1;
        }
        if open.len() == DEEPEST || roots > 1 {
            return Err("its elements are nested in a way that no listing is".into());
        }
        text.clear();
        open.push(name);
        if empty {
            ended(&open, String::new())?;
            open.pop();
        }
    }
    if roots == 1 && open.is_empty() { Ok(()) } else { Err("it is not whole".into()) }
}

fn unescape(raw: &str, text: &mut String) -> Result<(), String> {
    let mut rest = raw;
    while let Some(at) = rest.find('&') {
        text.push_str(&rest[..at]);
        let (name, after) = rest[at + 1..].split_once(';').ok_or("an entity does not end")?;
        text.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let number = match name.strip_prefix("#x") {
                    Some(hex) => u32::from_str_radix(hex, 16).ok(),
                    None => name.strip_prefix('#').and_then(|decimal| decimal.parse().ok()),
                };
                number.and_then(char::from_u32).ok_or("it has an unknown entity")?
            }
        });
        rest = after;
    }
    text.push_str(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>spec</Name><Prefix>firecracker-ci/</Prefix>
  <!-- <Contents><Key>no</Key></Contents> -->
  <Contents><Key>a&amp;b&#x2f;c</Key><ETag>&quot;0&quot;</ETag><Size> 42 </Size><Owner><ID>x</ID></Owner></Contents>
  <Contents><Key>d</Key><Empty/></Contents>
  <CommonPrefixes><Prefix>firecracker-ci/v1.7/</Prefix></CommonPrefixes>
  <IsTruncated>true</IsTruncated><NextContinuationToken>1/a+b=</NextContinuationToken>
</ListBucketResult>"#;

    #[test]
    fn an_answer_is_read() {
        let listing = Listing::parse(ANSWER.as_bytes()).unwrap();
        let object = |key: &str, size| Object { key: key.into(), size };
        assert_eq!(listing.objects, [object("a&b/c", Some(42)), object("d", None)]);
        assert_eq!(listing.prefixes, ["firecracker-ci/v1.7/"]);
        assert_eq!(listing.next.as_deref(), Some("1/a+b="));
        let last = ANSWER.replace(">true<", ">false<");
        assert_eq!(Listing::parse(last.as_bytes()).unwrap().next, None);
    }

    #[test]
    fn what_is_no_listing_is_refused() {
        for (xml, why) in [
            ("", "it is not whole"),
            ("<html><body>login</body></html>", "it is not a ListBucketResult"),
            ("<Error><Code>AccessDenied</Code></Error>", "it is not a ListBucketResult"),
            ("<!DOCTYPE x [<!ENTITY a \"b\">]><ListBucketResult/>", "document type"),
            ("<ListBucketResult><Contents></ListBucketResult>", "tags do not match"),
            ("<ListBucketResult>", "it is not whole"),
            ("<ListBucketResult/><ListBucketResult/>", "nested"),
            ("<ListBucketResult><Name>&bomb;</Name></ListBucketResult>", "unknown entity"),
            ("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", "there is more"),
            ("<ListBucketResult><", "a tag does not end"),
            (&"<a>".repeat(100), "nested"),
        ] {
            let error = Listing::parse(xml.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{xml}: {error}");
        }
        assert!(Listing::parse(b"<ListBucketResult>\xff</ListBucketResult>").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(at in 0usize..2000, byte: u8, cut in 0usize..900) {
            let mut xml = ANSWER.as_bytes().to_vec();
            let len = xml.len();
            xml[at % len] = byte;
            xml.truncate(cut);
            let _ = Listing::parse(&xml);
        }
    }
}
