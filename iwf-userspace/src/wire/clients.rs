//! Known families of control points, by what they call themselves, and what each needs to be told otherwise than the
//! standard says.
//!
//! Whatever can be borne for everybody is borne for everybody: the forms of requests that are seen in the field are read from
//! whoever sends them. Here is only what would be wrong for others.
#![forbid(unsafe_code)]

/// A family of control points.
#[derive(Debug, PartialEq, Eq)]
pub struct Client {
    /// What people call it.
    pub name: &'static str,
    /// It is known by any of these in its user agent, in lower case.
    pub marks: &'static [&'static str],
    /// Which versions of device and services it can bear.
    pub versions: Versions,
    /// How it reads a document inside of an answer.
    pub inner: InnerDocument,
}

/// Which versions a control point can bear to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// All; what is searched decides.
    All,
    /// It gives up at anything of version 2 that it can reach from a description.
    FirstOnly,
}

/// How a document is put into an argument of an answer (the listing of GetListOfPortMappings).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerDocument {
    /// Escaped, as any other text: UPnP Device Architecture 1.1 clause 3.2.2 (AMB-23).
    Escaped,
    /// As a CDATA section. The same to a parser of XML, and all that some others look for.
    Cdata,
}

/// Who does not say who it is, or is not known here.
static ANYBODY: Client = Client {
    name: "any other",
    marks: &[],
    versions: Versions::All,
    inner: InnerDocument::Escaped,
};

/// In this order; the first that fits is it.
pub static KNOWN: [Client; 5] = [
    Client {
        name: "Xbox",
        marks: &["xbox"],
        versions: Versions::FirstOnly,
        inner: InnerDocument::Escaped,
    },
    Client {
        name: "Windows",
        // The last is what Windows XP says of itself: "Mozilla/4.0 (compatible; UPnP/1.0; Windows 9x)".
        marks: &["microsoft", "fdssdp", "upnp/1.0; windows"],
        versions: Versions::FirstOnly,
        inner: InnerDocument::Escaped,
    },
    Client {
        name: "PlayStation",
        marks: &["playstation"],
        versions: Versions::FirstOnly,
        inner: InnerDocument::Escaped,
    },
    Client {
        name: "Nintendo",
        marks: &["nintendo"],
        versions: Versions::FirstOnly,
        inner: InnerDocument::Escaped,
    },
    Client {
        name: "MiniUPnPc",
        marks: &["miniupnpc"],
        versions: Versions::All,
        // Its parser has no character references.
        inner: InnerDocument::Cdata,
    },
];

/// Who has sent this user agent.
pub fn of(user_agent: Option<&str>) -> &'static Client {
    let user_agent = user_agent.unwrap_or_default().to_ascii_lowercase();
    let is_it = |client: &&Client| client.marks.iter().any(|mark| user_agent.contains(mark));
    KNOWN.iter().find(is_it).unwrap_or(&ANYBODY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_points_are_known_by_their_user_agents() {
        for (user_agent, name) in [
            ("Microsoft-Windows/10.0 UPnP/1.0", "Windows"),
            ("FDSSDP", "Windows"),
            ("Mozilla/4.0 (compatible; UPnP/1.0; Windows 9x)", "Windows"),
            ("Xbox/2.0.17559.0 UPnP/1.0 Xbox/2.0.17559.0", "Xbox"),
            ("Debian/12, UPnP/1.1, MiniUPnPc/2.2.4", "MiniUPnPc"),
            ("GUPnP/1.6.3 DLNADOC/1.50", "any other"),
            ("Mozilla/5.0 (Windows NT 10.0; Win64; x64)", "any other"),
            ("", "any other"),
        ] {
            assert_eq!(of(Some(user_agent)).name, name, "{user_agent}");
        }
        assert_eq!(of(None).name, "any other");
    }

    #[test]
    fn each_mark_is_in_lower_case_and_leads_to_its_client() {
        for client in &KNOWN {
            for mark in client.marks {
                assert_eq!(*mark, mark.to_ascii_lowercase());
                assert_eq!(of(Some(mark)), client);
            }
        }
    }
}
