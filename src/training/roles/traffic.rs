//! Bytes on ps0's connections: all together, and of each worker.

use protocol::{Net, Role, Session};

use crate::history::Bytes;
use crate::job::WORKERS_MAX;

/// What the connections that are over have carried.
#[derive(Default)]
pub(super) struct Traffic(Bytes);

impl Traffic {
    /// A connection is over.
    pub(super) fn ended(&mut self, session: &Session) {
        count(&mut self.0, session);
    }

    /// Bytes of the connections that are over and of those that are not.
    pub(super) fn so_far(&self, net: &mut Net) -> Bytes {
        let mut bytes = self.0.clone();
        for id in net.ids() {
            if let Some(session) = net.session(id) {
                count(&mut bytes, session);
            }
        }
        bytes
    }
}

/// Adds what a session carried; to a worker, once its evidence said that it is one.
fn count(bytes: &mut Bytes, session: &Session) {
    let carried = session.bytes();
    let worker = match session.peer().map(|peer| peer.role) {
        Some(Role::Worker(number)) if number < WORKERS_MAX => Some(number),
        _ => None,
    };
    bytes.add(carried, worker);
}
