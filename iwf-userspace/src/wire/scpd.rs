//! Services as data: actions, arguments, state variables; the documents that describe them, and the check of a
//! call against them.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 2.5. The tables are in [`super::services`].
#![forbid(unsafe_code)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::soap::{Call, UpnpError};
use super::xml::Document;

/// A service type in one version.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// Type without version, for example `WANIPConnection`.
    pub kind: &'static str,
    /// Version of the type.
    pub version: u8,
    /// What follows `urn:upnp-org:serviceId:`.
    pub id: &'static str,
    /// Name of the service in URLs.
    pub path: &'static str,
    /// Every action that is offered.
    pub actions: &'static [Action],
    /// Optional actions of the standard that are not.
    pub not_offered: &'static [&'static str],
    /// Every variable that an action or an event refers to.
    pub variables: &'static [Variable],
}

/// An action.
#[derive(Debug, PartialEq, Eq)]
pub struct Action {
    /// Its name.
    pub name: &'static str,
    /// In arguments, then out arguments, in the order of the standard.
    pub arguments: &'static [Argument],
}

/// An argument of an action.
#[derive(Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: &'static str,
    /// Who sends it.
    pub direction: Direction,
    /// The variable that gives its type.
    pub variable: &'static str,
}

/// Who sends an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The control point.
    In,
    /// The device.
    Out,
}

/// A state variable.
#[derive(Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its data type.
    pub data: DataType,
    /// Whether subscribers are told when it changes.
    pub evented: bool,
    /// Allowed strings; empty for no restriction.
    pub allowed: &'static [&'static str],
    /// Smallest and largest number; `None` for those of the data type.
    pub range: Option<(u32, u32)>,
}

/// The data types used by the services here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// 16 bits, unsigned.
    Ui2,
    /// 32 bits, unsigned.
    Ui4,
    /// Written 0 or 1; read also as true, false, yes, no.
    Boolean,
    /// Free text.
    String,
    /// Octets, written in base64 (RFC 4648).
    Base64,
}

/// In arguments that some control points leave out; the action then acts as if they were empty.
const MAY_BE_MISSING: &[&str] = &["NewRemoteHost", "NewLeaseDuration"];

/// Numbers that some control points leave empty, but not out.
const MAY_BE_EMPTY: &[&str] = &["RemotePort"];

impl Service {
    /// Its URN.
    pub fn urn(&self) -> String {
        format!(
            "urn:schemas-upnp-org:service:{}:{}",
            self.kind, self.version
        )
    }

    /// The action of this name.
    pub fn action(&self, name: &str) -> Option<&'static Action> {
        self.actions.iter().find(|action| action.name == name)
    }

    /// The variable of this name.
    pub fn variable(&self, name: &str) -> Option<&'static Variable> {
        self.variables.iter().find(|v| v.name == name)
    }

    /// Checks that a call names an action (401, or 602 for one that the standard has as an option) and has its
    /// arguments, once each, in the types of the table (402, or 601 for a number that does not fit the type). What values
    /// mean is not looked at here.
    pub fn check(&self, call: &Call) -> Result<&'static Action, UpnpError> {
        let is_optional = self.not_offered.contains(&call.action.as_str());
        let action = self.action(&call.action).ok_or(if is_optional {
            UpnpError::OPTIONAL_ACTION_NOT_IMPLEMENTED
        } else {
            UpnpError::INVALID_ACTION
        })?;
        for (name, value) in &call.args {
            let argument = action
                .inputs()
                .find(|argument| argument.name == name)
                .ok_or(UpnpError::INVALID_ARGS)?;
            let may_be_empty =
                MAY_BE_MISSING.contains(&argument.name) || MAY_BE_EMPTY.contains(&argument.name);
            if value.trim().is_empty() && may_be_empty {
                continue;
            }
            match self.variable(argument.variable).map(|v| v.data) {
                Some(DataType::Ui2) => number(value, u16::MAX.into()).map(|_| ())?,
                Some(DataType::Ui4) => number(value, u32::MAX).map(|_| ())?,
                Some(DataType::Boolean) => boolean(value).map(|_| ())?,
                Some(DataType::String | DataType::Base64) | None => {}
            }
        }
        let complete = action.inputs().all(|argument| {
            call.arg(argument.name).is_some() || MAY_BE_MISSING.contains(&argument.name)
        });
        if complete {
            Ok(action)
        } else {
            Err(UpnpError::INVALID_ARGS)
        }
    }

    /// The service description document. `config_id` goes with version 1.1 of the architecture; `None` writes
    /// one of version 1.0.
    pub fn document(&self, config_id: Option<u32>) -> String {
        let mut xml = Document::new();
        open_root(
            &mut xml,
            "scpd",
            "urn:schemas-upnp-org:service-1-0",
            config_id,
        );
        xml.open("actionList", &[]);
        for action in self.actions {
            xml.open("action", &[]);
            xml.leaf("name", action.name);
            if !action.arguments.is_empty() {
                xml.open("argumentList", &[]);
                for argument in action.arguments {
                    xml.open("argument", &[]);
                    xml.leaf("name", argument.name);
                    xml.leaf("direction", argument.direction.name());
                    xml.leaf("relatedStateVariable", argument.variable);
                    xml.close("argument");
                }
                xml.close("argumentList");
            }
            xml.close("action");
        }
        xml.close("actionList");
        xml.open("serviceStateTable", &[]);
        for variable in self.variables {
            variable.write(&mut xml);
        }
        xml.close("serviceStateTable");
        xml.close("scpd");
        xml.finish()
    }
}

impl Action {
    /// What the control point sends, in order.
    pub fn inputs(&self) -> impl Iterator<Item = &'static Argument> + use<> {
        self.arguments
            .iter()
            .filter(|a| a.direction == Direction::In)
    }

    /// What the device answers, in order.
    pub fn outputs(&self) -> impl Iterator<Item = &'static Argument> + use<> {
        self.arguments
            .iter()
            .filter(|a| a.direction == Direction::Out)
    }
}

impl Direction {
    const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

impl DataType {
    /// Its name in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ui2 => "ui2",
            Self::Ui4 => "ui4",
            Self::Boolean => "boolean",
            Self::String => "string",
            Self::Base64 => "bin.base64",
        }
    }
}

impl Variable {
    fn write(&self, xml: &mut Document) {
        let evented = if self.evented { "yes" } else { "no" };
        xml.open("stateVariable", &[("sendEvents", evented)]);
        xml.leaf("name", self.name);
        xml.leaf("dataType", self.data.name());
        if !self.allowed.is_empty() {
            xml.open("allowedValueList", &[]);
            for value in self.allowed {
                xml.leaf("allowedValue", value);
            }
            xml.close("allowedValueList");
        }
        if let Some((minimum, maximum)) = self.range {
            xml.open("allowedValueRange", &[]);
            xml.leaf("minimum", &minimum.to_string());
            xml.leaf("maximum", &maximum.to_string());
            xml.leaf("step", "1");
            xml.close("allowedValueRange");
        }
        xml.close("stateVariable");
    }
}

/// Reads an unsigned number with blanks around it: 402 if it is none, 601 if it is over `max`.
pub fn number(value: &str, max: u32) -> Result<u32, UpnpError> {
    let digits = value.trim();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UpnpError::INVALID_ARGS);
    }
    match digits.parse::<u32>() {
        Ok(number) if number <= max => Ok(number),
        Ok(_) | Err(_) => Err(UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE),
    }
}

/// Reads a boolean in any of its spellings: 402 if it is none.
pub fn boolean(value: &str) -> Result<bool, UpnpError> {
    let value = value.trim();
    let is = |spellings: [&str; 3]| spellings.iter().any(|s| value.eq_ignore_ascii_case(s));
    if is(["1", "true", "yes"]) {
        Ok(true)
    } else if is(["0", "false", "no"]) {
        Ok(false)
    } else {
        Err(UpnpError::INVALID_ARGS)
    }
}

/// Reads octets, with blanks anywhere between the digits: 402 if they are none.
pub fn octets(value: &str) -> Result<Vec<u8>, UpnpError> {
    let digits: String = value.split_ascii_whitespace().collect();
    BASE64.decode(digits).map_err(|_| UpnpError::INVALID_ARGS)
}

/// Writes octets.
pub fn base64(octets: &[u8]) -> String {
    BASE64.encode(octets)
}

/// Opens the root element of a description and writes the version of the architecture.
pub(super) fn open_root(xml: &mut Document, name: &str, namespace: &str, config_id: Option<u32>) {
    match config_id {
        Some(id) => xml.open(name, &[("xmlns", namespace), ("configId", &id.to_string())]),
        None => xml.open(name, &[("xmlns", namespace)]),
    }
    xml.open("specVersion", &[]);
    xml.leaf("major", "1");
    xml.leaf("minor", if config_id.is_some() { "1" } else { "0" });
    xml.close("specVersion");
}
