//! The states of a TCP connection, as far as a NAT needs them: RFC 7857 section 2, figure 1, and RFC 5382 REQ-5.

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// What one side of a connection has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    syn: bool,
    ack: bool,
    fin: bool,
    /// It has reset the connection, and nothing came from either side since (the state TRANS).
    reset: bool,
    /// Its last segment was a RST.
    refuses: bool,
}

impl Shown {
    /// An open connection that this side has closed.
    pub(crate) const CLOSING: Self = Self {
        syn: true,
        ack: true,
        fin: true,
        reset: false,
        refuses: false,
    };

    /// Whether the side wants the connection: a host that answers a stranger with a RST, or not at all, does not.
    pub(crate) const fn takes_part(&self, invited: bool) -> bool {
        !self.refuses && (!invited || self.syn)
    }
}

/// A segment that begins a connection.
pub(crate) fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// A segment of the side that has shown `own`.
pub(crate) fn observe(own: &mut Shown, other: &mut Shown, flags: u8) {
    let over = own.fin || other.fin || own.reset || other.reset;
    let again = !(own.ack || own.fin || own.reset);
    // A new connection with the ports of an old one (RFC 6191), not its first SYN once more.
    if opens(flags) && over && !again {
        *own = Shown::default();
        *other = Shown::default();
    }
    own.syn |= flags & SYN != 0;
    own.ack |= flags & ACK != 0;
    own.fin |= flags & FIN != 0;
    own.refuses = flags & RST != 0;
    if flags & RST != 0 {
        own.reset = true;
    } else {
        // A connection that goes on was not reset (section 2.2).
        own.reset = false;
        other.reset = false;
    }
}

/// ESTABLISHED, or closed by one side only: it has the long time. Else it opens, closes or is reset.
pub(crate) fn is_open(one: &Shown, other: &Shown) -> bool {
    let opened = one.syn && one.ack && other.syn && other.ack;
    let closed = one.fin && other.fin;
    let reset = one.reset || other.reset;
    opened && !closed && !reset
}
