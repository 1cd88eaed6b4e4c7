//! Writes the few shapes of XML that UPnP needs.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use quick_xml::Writer;
use quick_xml::escape::partial_escape;
use quick_xml::events::{BytesCData, BytesDecl, BytesEnd, BytesStart, BytesText, Event};

/// A document being written, without indentation.
pub(super) struct Document {
    writer: Writer<Vec<u8>>,
}

impl Document {
    /// A document that starts with the XML declaration and a line feed.
    pub(super) fn new() -> Self {
        let mut document = Self {
            writer: Writer::new(Vec::with_capacity(1024)),
        };
        document.event(Event::Decl(BytesDecl::new("1.0", None, None)));
        document.event(Event::Text(BytesText::from_escaped("\n")));
        document
    }

    /// A part of a document, without a declaration.
    pub(super) fn fragment() -> Self {
        Self {
            writer: Writer::new(Vec::new()),
        }
    }

    /// Writes a start tag. Attribute values are escaped.
    pub(super) fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        let start = BytesStart::new(name).with_attributes(attributes.iter().copied());
        self.event(Event::Start(start));
    }

    /// Writes an end tag.
    pub(super) fn close(&mut self, name: &str) {
        self.event(Event::End(BytesEnd::new(name)));
    }

    /// Writes an element that holds only text. An empty one keeps both tags, which every client understands.
    pub(super) fn leaf(&mut self, name: &str, text: &str) {
        self.open(name, &[]);
        let escaped = partial_escape(legal(text));
        self.event(Event::Text(BytesText::from_escaped(escaped)));
        self.close(name);
    }

    /// The same element, its text as it is in as many CDATA sections as it takes.
    pub(super) fn leaf_cdata(&mut self, name: &str, text: &str) {
        self.open(name, &[]);
        for section in BytesCData::escaped(&legal(text)) {
            self.event(Event::CData(section));
        }
        self.close(name);
    }

    /// Ends the document.
    pub(super) fn finish(self) -> String {
        String::from_utf8(self.writer.into_inner()).expect("only strings were written")
    }

    fn event(&mut self, event: Event<'_>) {
        self.writer
            .write_event(event)
            .expect("writing to memory does not fail");
    }
}

/// The text, with a mark for each character that XML cannot carry.
fn legal(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_xml_char) {
        return Cow::Borrowed(text);
    }
    let replaced = text.chars().map(|c| {
        if is_xml_char(c) {
            c
        } else {
            char::REPLACEMENT_CHARACTER
        }
    });
    Cow::Owned(replaced.collect())
}

/// Whether XML 1.0 can carry a character at all, escaped or not (its production 2).
fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}
