//! The path between the core and its server.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

/// How the path treats datagrams, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    /// Shortest and longest time on the way, in milliseconds.
    pub(super) delay: (u64, u64),
    /// Datagrams lost, per hundred.
    pub(super) loss: u32,
    /// Datagrams that arrive twice, per hundred.
    pub(super) twice: u32,
    /// Nothing gets through.
    pub(super) cut: bool,
}

impl Link {
    /// The times after which copies of a datagram arrive; none if it is lost.
    pub(super) fn copies(&self, rng: &mut StdRng) -> Vec<Duration> {
        let mut arrivals = Vec::new();
        let percent = |rng: &mut StdRng| rng.random_range(0..100u32);
        if self.cut || percent(rng) < self.loss {
            return arrivals;
        }
        let copies = if percent(rng) < self.twice { 2 } else { 1 };
        for _ in 0..copies {
            let millis = rng.random_range(self.delay.0..=self.delay.1);
            arrivals.push(Duration::from_millis(millis));
        }
        arrivals
    }
}
