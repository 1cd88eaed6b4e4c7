//! What the core wants people to know, in the log and in the journal.

use tracing::info;

use super::Shell;
use crate::daemon::control::events::EventKind;
use crate::daemon::dataplane::DataPlane;
use crate::daemon::store::Store;
use crate::iwf::Notice;
use crate::types::Generation;

impl<P: DataPlane, S: Store> Shell<P, S> {
    pub(super) fn notify(&self, notice: &Notice) {
        match notice {
            Notice::Created(generation) => {
                self.tell(*generation, EventKind::MappingCreated, "mapping created");
            }
            Notice::Renewed(generation) => {
                self.tell(*generation, EventKind::MappingRenewed, "mapping renewed");
            }
            Notice::Removed(generation) => match self.removed {
                Some(entry) if entry.generation == *generation => {
                    info!(
                        %generation,
                        protocol = %entry.protocol,
                        internal = %entry.internal,
                        nat1 = %entry.external,
                        "mapping removed"
                    );
                    self.tell_entry(EventKind::MappingRemoved, &entry);
                }
                Some(_) | None => {
                    info!(%generation, "mapping removed");
                    let detail = format!("generation {generation}");
                    self.tell_text(EventKind::MappingRemoved, None, detail);
                }
            },
            Notice::ExternalAddress(Some(address)) => {
                info!(%address, "external address");
                self.tell_text(EventKind::ExternalAddress, None, address.to_string());
            }
            Notice::ExternalAddress(None) => {
                info!("external address is not known");
                self.tell_text(EventKind::ExternalAddress, None, "not known".to_owned());
            }
            Notice::StaticWaits {
                protocol,
                external,
                problem,
            } => {
                info!(
                    %protocol,
                    %external,
                    %problem,
                    "mapping of the configuration cannot be had now; trying again"
                );
                let detail = format!("{protocol} {external}: {problem}; trying again");
                self.tell_text(EventKind::StaticWaits, None, detail);
            }
            Notice::Moved { .. }
            | Notice::UpstreamRefused { .. }
            | Notice::GivenBack { .. }
            | Notice::ServerSpeaks { .. } => self.tell_upstream(notice),
            Notice::Withdrawn { generation, why } => {
                info!(%generation, why, "mapping taken away");
                self.tell_about(EventKind::MappingWithdrawn, *generation, None, why.clone());
            }
            // Told with the answer.
            Notice::Refused { .. } => {}
            Notice::PinholeOpened(pinhole) => self.tell_opened(pinhole),
            Notice::PinholeClosed(pinhole, why) => self.tell_closed(pinhole, *why),
            Notice::Introduction(told) => self.tell_introduction(*told),
            Notice::EpochReset(server) => {
                info!(%server, "PCP server lost its state; asking for the mappings again");
                let detail = "asking for the mappings again".to_owned();
                self.tell_text(EventKind::ServerLostState, Some(*server), detail);
            }
        }
    }

    pub(super) fn tell(&self, generation: Generation, kind: EventKind, what: &str) {
        match self.core.mapping(generation) {
            Some(mapping) => {
                info!(
                    %generation,
                    protocol = %mapping.protocol,
                    internal = %mapping.internal,
                    nat1 = %mapping.nat1,
                    external = mapping.claim.endpoint().map(tracing::field::display),
                    "{what}"
                );
                self.tell_mapping(kind, mapping);
            }
            None => info!(%generation, "{what}"),
        }
    }
}
