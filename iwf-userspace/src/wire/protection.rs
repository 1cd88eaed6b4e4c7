//! The documents inside of arguments of DeviceProtection:1: protocols, identities, access list.
//!
//! Read before editing: DeviceProtection:1 sections 2.3.2 to 2.3.5.
//!
//! They are text once more in the message, so they are escaped there. What is read is bounded like a call: no document
//! type, no entities of its own, a limit of depth and of identities.
#![forbid(unsafe_code)]

use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::Event;
use quick_xml::name::{Namespace, ResolveResult};
use quick_xml::reader::NsReader;

use super::xml::Document;
use crate::types::access::{Identity, Roles, Who};

/// Identities that one list may name.
pub const MAX_LISTED: usize = 32;
/// Longest name of a user or a control point, in octets.
pub const MAX_NAME: usize = 64;
/// Longest document that is read, in octets.
pub const MAX_DOCUMENT: usize = 16 << 10;

const NAMESPACE: &str = "urn:schemas-upnp-org:gw:DeviceProtection";
const NAMESPACES: &[(&str, &str)] = &[
    ("xmlns", NAMESPACE),
    ("xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance"),
    (
        "xsi:schemaLocation",
        "urn:schemas-upnp-org:gw:DeviceProtection http://www.upnp.org/schemas/gw/DeviceProtection-v1.xsd",
    ),
];

/// Elements inside each other: the document, the identity, its fields.
const MAX_DEPTH: usize = 3;

/// An identity as a control point writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Whom it is about.
    pub who: Who,
    /// Name of the product, of a control point.
    pub name: String,
    /// Name that a person has given it, of a control point.
    pub alias: Option<String>,
}

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Longer than [`MAX_DOCUMENT`].
    #[error("document of {0} octets is too long")]
    TooLong(usize),
    /// Not well-formed.
    #[error("document is not well-formed")]
    Malformed(#[source] quick_xml::Error),
    /// It ends inside of an element.
    #[error("document is truncated")]
    Truncated,
    /// A document type definition.
    #[error("document has a document type")]
    DocumentType,
    /// An entity other than the five of XML.
    #[error("document refers to an entity that XML does not define")]
    Entity,
    /// Another element than the schema has there, or in another namespace.
    #[error("document has an element {0:?} where none is")]
    Unexpected(String),
    /// A name is missing, empty or over [`MAX_NAME`] octets, or no UUID where one has to be.
    #[error("document has no good name for an identity")]
    Name,
    /// More than [`MAX_LISTED`], or none, or not one where there is one.
    #[error("document has another number of identities than it may")]
    Count,
}

/// SupportedProtocols: how control points introduce themselves, and how users log in.
pub fn protocols(introduction: &[&str], login: &[&str]) -> String {
    let mut xml = Document::fragment();
    xml.open("SupportedProtocols", NAMESPACES);
    for (element, names) in [("Introduction", introduction), ("Login", login)] {
        for name in names {
            xml.open(element, &[]);
            xml.leaf("Name", name);
            xml.close(element);
        }
    }
    xml.close("SupportedProtocols");
    xml.finish()
}

/// The access list.
pub fn access_list<'a>(identities: impl IntoIterator<Item = &'a Identity>) -> String {
    let mut xml = Document::fragment();
    xml.open("ACL", NAMESPACES);
    xml.open("Identities", &[]);
    for identity in identities {
        let roles = role_list(identity.roles);
        match &identity.who {
            Who::User(name) => {
                xml.open("User", &[]);
                xml.leaf("Name", name);
                xml.leaf("RoleList", &roles);
                xml.close("User");
            }
            Who::ControlPoint(id) => {
                let introduced = [("introduced", "1")];
                xml.open(
                    "CP",
                    if identity.introduced {
                        &introduced
                    } else {
                        &[]
                    },
                );
                xml.leaf("Name", &identity.name);
                if let Some(alias) = &identity.alias {
                    xml.leaf("Alias", alias);
                }
                xml.leaf("ID", &id.to_string());
                xml.leaf("RoleList", &roles);
                xml.close("CP");
            }
        }
    }
    xml.close("Identities");
    xml.open("Roles", &[]);
    for role in ["Admin", "Basic", "Public"] {
        xml.open("Role", &[]);
        xml.leaf("Name", role);
        xml.close("Role");
    }
    xml.close("Roles");
    xml.close("ACL");
    xml.finish()
}

/// The roles of an identity, which always has the one of everybody.
pub fn role_list(roles: Roles) -> String {
    if roles == Roles::default() {
        return "Public".to_owned();
    }
    format!("Public {roles}")
}

/// A list of identities.
pub fn identity_list<'a>(identities: impl IntoIterator<Item = &'a Named>) -> String {
    let mut xml = Document::fragment();
    xml.open("Identities", NAMESPACES);
    for identity in identities {
        match &identity.who {
            Who::User(name) => {
                xml.open("User", &[]);
                xml.leaf("Name", name);
                xml.close("User");
            }
            Who::ControlPoint(id) => {
                xml.open("CP", &[]);
                xml.leaf("Name", &identity.name);
                if let Some(alias) = &identity.alias {
                    xml.leaf("Alias", alias);
                }
                xml.leaf("ID", &id.to_string());
                xml.close("CP");
            }
        }
    }
    xml.close("Identities");
    xml.finish()
}

/// Reads a list of identities (A_ARG_TYPE_IdentityList).
pub fn read_identity_list(text: &str) -> Result<Vec<Named>, DocumentError> {
    let found = read("Identities", text)?;
    if found.is_empty() {
        return Err(DocumentError::Count);
    }
    found.into_iter().map(Fields::whole).collect()
}

/// Reads whom A_ARG_TYPE_Identity names. The name of a control point may be missing.
pub fn read_identity(text: &str) -> Result<Who, DocumentError> {
    let mut found = read("Identity", text)?;
    let first = found.pop().ok_or(DocumentError::Count)?;
    if found.is_empty() {
        first.who()
    } else {
        Err(DocumentError::Count)
    }
}

/// The fields of an identity as far as they have been read.
#[derive(Default)]
struct Fields {
    is_user: bool,
    name: Option<String>,
    alias: Option<String>,
    id: Option<String>,
}

impl Fields {
    fn who(&self) -> Result<Who, DocumentError> {
        if self.is_user {
            return Ok(Who::User(good_name(self.name.as_deref())?.to_owned()));
        }
        let id = self.id.as_deref().and_then(|id| id.parse().ok());
        id.map(Who::ControlPoint).ok_or(DocumentError::Name)
    }

    fn whole(self) -> Result<Named, DocumentError> {
        let who = self.who()?;
        let name = match &who {
            Who::User(_) => String::new(),
            Who::ControlPoint(_) => good_name(self.name.as_deref())?.to_owned(),
        };
        let alias = match self.alias.as_deref() {
            Some(alias) if !self.is_user => Some(good_name(Some(alias))?.to_owned()),
            Some(_) | None => None,
        };
        Ok(Named { who, name, alias })
    }
}

/// A name that can be shown and told apart: of one line, without blanks around it.
pub fn good_name(name: Option<&str>) -> Result<&str, DocumentError> {
    let name = name.unwrap_or_default().trim();
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(DocumentError::Name);
    }
    Ok(name)
}

fn read(root: &str, text: &str) -> Result<Vec<Fields>, DocumentError> {
    if text.len() > MAX_DOCUMENT {
        return Err(DocumentError::TooLong(text.len()));
    }
    let mut reader = NsReader::from_str(text.trim());
    reader.config_mut().expand_empty_elements = true;
    let mut found: Vec<Fields> = Vec::new();
    let mut depth = 0_usize;
    // The field that is being read, and its text.
    let mut field: Option<(String, String)> = None;
    loop {
        let (namespace, event) = reader
            .read_resolved_event()
            .map_err(DocumentError::Malformed)?;
        match event {
            Event::Start(start) => {
                depth += 1;
                let name = start.local_name();
                let name: &str = name.as_ref();
                let unexpected = || DocumentError::Unexpected(name.chars().take(32).collect());
                let known = match namespace {
                    ResolveResult::Bound(Namespace(urn)) => urn == NAMESPACE,
                    // Control points that build documents by hand forget it.
                    ResolveResult::Unbound => true,
                    ResolveResult::Unknown(_) => false,
                };
                if !known || depth > MAX_DEPTH {
                    return Err(unexpected());
                }
                match (depth, name) {
                    (1, name) if name == root => {}
                    (2, "User" | "CP") => {
                        if found.len() == MAX_LISTED {
                            return Err(DocumentError::Count);
                        }
                        found.push(Fields {
                            is_user: name == "User",
                            ..Fields::default()
                        });
                    }
                    // Roles are given by other actions.
                    (3, "Name" | "Alias" | "ID" | "RoleList") => {
                        field = Some((name.to_owned(), String::new()));
                    }
                    _ => return Err(unexpected()),
                }
            }
            Event::End(_) => {
                if let (Some((name, value)), Some(fields)) = (field.take(), found.last_mut()) {
                    let slot = match name.as_str() {
                        "Name" => &mut fields.name,
                        "Alias" => &mut fields.alias,
                        "ID" => &mut fields.id,
                        _ => &mut None,
                    };
                    if slot.replace(value).is_some() {
                        return Err(DocumentError::Unexpected(name));
                    }
                }
                depth = depth.saturating_sub(1);
            }
            Event::Text(text) => {
                if let Some((_, value)) = &mut field {
                    value.push_str(&text.xml10_content());
                }
            }
            Event::CData(text) => {
                if let Some((_, value)) = &mut field {
                    value.push_str(&text.xml10_content());
                }
            }
            Event::GeneralRef(reference) => {
                let character = reference
                    .resolve_char_ref()
                    .map_err(DocumentError::Malformed)?;
                if let Some((_, value)) = &mut field {
                    match character {
                        Some(character) => value.push(character),
                        None => value
                            .push_str(resolve_xml_entity(&reference).ok_or(DocumentError::Entity)?),
                    }
                }
            }
            Event::DocType(_) => return Err(DocumentError::DocumentType),
            Event::Eof if depth > 0 => return Err(DocumentError::Truncated),
            Event::Eof => return Ok(found),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "e593d8e6-6b8b-59d9-845a-21828db570e9";

    fn list() -> Vec<Named> {
        vec![
            Named {
                who: Who::User("Mika & Co".to_owned()),
                name: String::new(),
                alias: None,
            },
            Named {
                who: Who::ControlPoint(ID.parse().unwrap()),
                name: "ACME <Widget>".to_owned(),
                alias: Some("Dad's phone".to_owned()),
            },
        ]
    }

    #[test]
    fn identities_are_read_as_written() {
        let text = identity_list(&list());
        assert_eq!(read_identity_list(&text).unwrap(), list());
    }

    #[test]
    fn every_prefix_of_a_list_is_refused() {
        let text = identity_list(&list());
        for end in 0..text.len() {
            assert!(read_identity_list(&text[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn one_identity_is_named_by_user_name_or_id() {
        let declared = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Identity xmlns=\"{NAMESPACE}\"><CP><ID>{ID}</ID></CP></Identity>"
        );
        let cp = Who::ControlPoint(ID.parse().unwrap());
        assert_eq!(read_identity(&declared).unwrap(), cp);
        let bare = "<Identity><User><Name> Tester </Name></User></Identity>";
        let user = Who::User("Tester".to_owned());
        assert_eq!(read_identity(bare).unwrap(), user);
    }

    #[test]
    fn what_the_schema_does_not_have_is_refused() {
        let user = "<User><Name>x</Name></User>";
        let many = format!("<Identities>{}</Identities>", user.repeat(MAX_LISTED + 1));
        let long = format!(
            "<Identities><User><Name>{}</Name></User></Identities>",
            "x".repeat(MAX_NAME + 1)
        );
        for wrong in [
            "",
            "x",
            "<Identities/>",
            "<Identities><User/></Identities>",
            "<Identities><User><Name></Name></User></Identities>",
            "<Identities><User><Name>a&#10;b</Name></User></Identities>",
            "<Identities><User><Name>x</Name><Name>y</Name></User></Identities>",
            "<Identities><CP><Name>x</Name></CP></Identities>",
            "<Identities><CP><Name>x</Name><ID>1</ID></CP></Identities>",
            "<Identities><CP><ID>e593d8e6-6b8b-59d9-845a-21828db570e9</ID></CP></Identities>",
            "<Identities><Group><Name>x</Name></Group></Identities>",
            "<Identities><User><Name><b>x</b></Name></User></Identities>",
            "<Identities xmlns=\"urn:other\"><User><Name>x</Name></User></Identities>",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><Identities><User><Name>&b;</Name></User></Identities>",
            "<Identities><User><Name>&b;</Name></User></Identities>",
            "<ACL><User><Name>x</Name></User></ACL>",
            &many,
            &long,
        ] {
            assert!(read_identity_list(wrong).is_err(), "{wrong:.80}");
        }
        let two = format!("<Identity>{user}{user}</Identity>");
        assert!(read_identity(&two).is_err());
    }

    #[test]
    fn the_access_list_names_identities_with_roles_and_all_roles() {
        let identities = [
            Identity {
                who: Who::User("Admin".to_owned()),
                name: String::new(),
                alias: None,
                introduced: false,
                roles: Roles::ADMIN,
                verifier: None,
            },
            Identity {
                who: Who::ControlPoint(ID.parse().unwrap()),
                name: "phone".to_owned(),
                alias: None,
                introduced: true,
                roles: Roles::default(),
                verifier: None,
            },
        ];
        let text = access_list(&identities);
        let body = text.split_once('>').unwrap().1;
        assert_eq!(
            body,
            format!(
                "<Identities><User><Name>Admin</Name><RoleList>Public Admin</RoleList></User>\
                 <CP introduced=\"1\"><Name>phone</Name><ID>{ID}</ID><RoleList>Public</RoleList></CP></Identities>\
                 <Roles><Role><Name>Admin</Name></Role><Role><Name>Basic</Name></Role><Role><Name>Public</Name></Role>\
                 </Roles></ACL>"
            )
        );
    }

    #[test]
    fn protocols_are_listed_by_their_use() {
        let text = protocols(&["WPS"], &["PKCS5"]);
        assert!(text.ends_with(
            "<Introduction><Name>WPS</Name></Introduction><Login><Name>PKCS5</Name></Login></SupportedProtocols>"
        ));
    }
}
