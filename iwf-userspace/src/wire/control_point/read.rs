//! XML that a stranger wrote, piece by piece.

use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::Event;
use quick_xml::reader::Reader;

use crate::wire::soap::{MAX_DEPTH, readable};

/// Most elements of a document. A description of a gateway has about a hundred.
const MAX_ELEMENTS: usize = 2048;

/// Why a document is not read.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    /// Larger than it may be.
    #[error("document of {have} octets exceeds {limit}")]
    TooLong {
        /// Octets received.
        have: usize,
        /// Octets allowed.
        limit: usize,
    },
    /// UTF-16 or UTF-32.
    #[error("document is not in an encoding based on ASCII")]
    Encoding,
    /// Not well-formed.
    #[error("document is not well-formed")]
    Malformed(#[source] quick_xml::Error),
    /// It has no element, or ends inside of one.
    #[error("document is truncated")]
    Truncated,
    /// A document type definition: never needed, the door of entity attacks.
    #[error("document has a document type")]
    DocumentType,
    /// An entity other than the five of XML.
    #[error("document refers to an entity that XML does not define")]
    Entity,
    /// Too many levels or elements.
    #[error("document is too large a tree")]
    TooLarge,
}

/// One step through a document. The depth of the root is 1; names are without prefix.
pub(super) enum Piece<'a> {
    /// An element with others inside begins.
    Open { name: &'a str, depth: usize },
    /// An element with text alone.
    Leaf {
        name: &'a str,
        depth: usize,
        text: &'a str,
    },
    /// It ends.
    Close { name: &'a str },
}

/// Walks through a document of at most `limit` octets.
pub(super) fn pieces(
    body: &[u8],
    limit: usize,
    mut take: impl FnMut(Piece<'_>),
) -> Result<(), XmlError> {
    if body.len() > limit {
        let have = body.len();
        return Err(XmlError::TooLong { have, limit });
    }
    let text = readable(body).ok_or(XmlError::Encoding)?;
    let mut reader = Reader::from_str(&text);
    let config = reader.config_mut();
    config.expand_empty_elements = true;
    config.allow_dangling_amp = true;

    // Names of the elements around, and the text of the innermost one as long as it has no other inside.
    let mut open: Vec<String> = Vec::new();
    let mut leaf: Option<String> = None;
    let mut elements = 0_usize;
    loop {
        match reader.read_event().map_err(XmlError::Malformed)? {
            Event::Start(start) => {
                elements += 1;
                if leaf.take().is_some()
                    && let Some(name) = open.last()
                {
                    let depth = open.len();
                    take(Piece::Open { name, depth });
                }
                open.push(start.local_name().as_ref().to_owned());
                leaf = Some(String::new());
                if open.len() > MAX_DEPTH || elements > MAX_ELEMENTS {
                    return Err(XmlError::TooLarge);
                }
            }
            Event::End(_) => {
                let depth = open.len();
                let Some(name) = open.pop() else {
                    return Err(XmlError::Truncated);
                };
                match leaf.take() {
                    Some(text) => take(Piece::Leaf {
                        name: &name,
                        depth,
                        text: &text,
                    }),
                    None => take(Piece::Close { name: &name }),
                }
            }
            Event::Text(text) => {
                if let Some(value) = &mut leaf {
                    value.push_str(&text.xml10_content());
                }
            }
            Event::CData(text) => {
                if let Some(value) = &mut leaf {
                    value.push_str(&text.xml10_content());
                }
            }
            Event::GeneralRef(reference) => {
                let character = reference.resolve_char_ref().map_err(XmlError::Malformed)?;
                if let Some(value) = &mut leaf {
                    match character {
                        Some(character) => value.push(character),
                        None => {
                            value.push_str(resolve_xml_entity(&reference).ok_or(XmlError::Entity)?);
                        }
                    }
                }
            }
            Event::DocType(_) => return Err(XmlError::DocumentType),
            Event::Eof if open.is_empty() && elements > 0 => return Ok(()),
            Event::Eof => return Err(XmlError::Truncated),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_depth_and_number_are_bounded() {
        let nested = |n: usize| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
        let many = |n: usize| format!("<r>{}</r>", "<a/>".repeat(n));
        let read = |text: &str| pieces(text.as_bytes(), 100_000, |_| {});
        assert!(read(&nested(MAX_DEPTH)).is_ok());
        assert!(matches!(
            read(&nested(MAX_DEPTH + 1)),
            Err(XmlError::TooLarge)
        ));
        assert!(read(&many(MAX_ELEMENTS - 1)).is_ok());
        assert!(matches!(read(&many(MAX_ELEMENTS)), Err(XmlError::TooLarge)));
        let long = pieces(&[b' '; 11], 10, |_| {});
        assert!(matches!(
            long,
            Err(XmlError::TooLong {
                have: 11,
                limit: 10
            })
        ));
        assert!(matches!(
            read("<!DOCTYPE a><a/>"),
            Err(XmlError::DocumentType)
        ));
        assert!(matches!(read("<a>&other;</a>"), Err(XmlError::Entity)));
        assert!(matches!(read("\u{feff}"), Err(XmlError::Truncated)));
    }

    #[test]
    fn leaves_have_their_text() {
        let mut seen = Vec::new();
        let text = "<?xml version='1.0'?><p:a>x<b> 1 &amp; <![CDATA[<2>]]>&#33;</b><c/></p:a>";
        pieces(text.as_bytes(), 1000, |piece| {
            seen.push(match piece {
                Piece::Open { name, depth } => format!("open {name} {depth}"),
                Piece::Leaf { name, depth, text } => format!("leaf {name} {depth} {text:?}"),
                Piece::Close { name } => format!("close {name}"),
            });
        })
        .expect("well-formed");
        assert_eq!(
            seen,
            [
                "open a 1",
                "leaf b 2 \" 1 & <2>!\"",
                "leaf c 2 \"\"",
                "close a"
            ]
        );
    }
}
