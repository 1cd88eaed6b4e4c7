//! SOAP control messages (UPnP Device Architecture 1.1 clause 3).
#![forbid(unsafe_code)]

/// An action call, decoded but not yet interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Service type without version, for example `WANIPConnection`.
    pub service: String,
    /// Version of the URN that was called; the response uses the same.
    pub version: u8,
    /// Action name.
    pub action: String,
    /// In arguments in the order received, values unescaped.
    pub args: Vec<(String, String)>,
}

/// Out arguments in SCPD order, or the error.
pub type ActionResult = Result<Vec<(&'static str, String)>, UpnpError>;

/// A UPnP error: code and its description (igd-service section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpnpError {
    /// Numeric code, 401 to 899.
    pub code: u16,
    /// Standard text of that code.
    pub description: &'static str,
}
