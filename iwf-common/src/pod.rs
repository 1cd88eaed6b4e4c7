//! Permission for aya to read and write the shared structs as bytes.

use crate::config::{Config, FdbKey, IfaceValue};
use crate::event::{Event, EventBudget};
use crate::flow::{SessionKey, SessionValue};
use crate::flow6::{
    EndpointKey6, EndpointValue6, FragmentKey6, FragmentValue6, PinholeKey, PinholeValue,
    SessionKey6, SessionValue6,
};
use crate::fragment::{FragmentKey, FragmentValue};
use crate::host::{HostKey, HostValue, Totals};
use crate::nat::{EndpointKey, FilterList, MappingValue, PeerKey, PeerValue};
use crate::softwire::{Softwire, SoftwireHop};
use crate::sweep::{SweepItem, SweepRequest};
use crate::tick::ClockSample;

macro_rules! pod {
    ($($name:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)`, only integers and arrays of them, no padding but named fields: the size
            // assertion beside the struct equals the sum of its fields.
            unsafe impl aya::Pod for $name {}
        )+
    };
}

pod!(
    ClockSample,
    Config,
    EndpointKey,
    EndpointKey6,
    EndpointValue6,
    FragmentKey6,
    FragmentValue6,
    PinholeKey,
    PinholeValue,
    SessionKey6,
    SessionValue6,
    Event,
    EventBudget,
    FdbKey,
    FilterList,
    HostKey,
    HostValue,
    Totals,
    FragmentKey,
    FragmentValue,
    IfaceValue,
    MappingValue,
    PeerKey,
    PeerValue,
    SessionKey,
    SessionValue,
    Softwire,
    SoftwireHop,
    SweepItem,
    SweepRequest,
);
