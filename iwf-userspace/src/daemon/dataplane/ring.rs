//! A ring that packet programs copy packets into, and what waits for them in the daemon.

use std::io;
use std::marker::PhantomData;

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a record of a ring is read as.
pub(crate) trait Record: Sized {
    /// The struct as its fields lie in the record; `None` if the record is shorter than it says, or of another version.
    fn read(record: &[u8]) -> Option<Self>;
}

/// A ring of records.
pub(crate) struct Ring<R> {
    ring: AsyncFd<RingBuf<MapData>>,
    records: PhantomData<R>,
}

impl<R: Record> Ring<R> {
    /// Registers the ring with the runtime.
    ///
    /// # Errors
    /// If the runtime refuses.
    pub(super) fn watch(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor, always gives the same one, and closes it only when it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self {
            ring: ring.map_err(io::Error::from)?,
            records: PhantomData,
        })
    }

    /// Waits until there is something and takes all of it, which is bounded by the ring's size. Who gives up waiting loses
    /// nothing.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub(crate) async fn take(&mut self) -> io::Result<Vec<R>> {
        let mut guard = self.ring.readable_mut().await?;
        let mut taken = Vec::new();
        let ring = guard.get_inner_mut();
        while let Some(item) = ring.next() {
            taken.extend(R::read(&item));
        }
        guard.clear_ready();
        Ok(taken)
    }
}
