//! Support: a connection of a simulated job: a link at each end, and what becomes of it between them.

use protocol::{Link, Session};

use crate::socket::{self, Socket};

/// After so long without an acknowledgement the system of a server breaks a connection.
const UNACKNOWLEDGED_MAX_MS: u64 = 60_000;

/// A link at each end, and what happened to them that nobody looked at yet: of the client first.
pub(crate) struct Connection {
    pub(crate) client: Link<Socket>,
    pub(crate) server: Link<Socket>,
    pub(crate) worker: usize,
    /// Whether an end has an edge that would end its wait.
    pub(crate) edges: [bool; 2],
    /// Whether the system of an end has closed it.
    cut: [bool; 2],
    /// Since when nothing comes through, and no end is told of the other's.
    silent_since_ms: Option<u64>,
}

impl Connection {
    /// A new one, of sockets that take so many bytes.
    pub(crate) fn new(room: [usize; 2], [client, server]: [Session; 2], worker: usize) -> Self {
        let [near, far] = socket::pair(room);
        Self {
            client: Link::new(near, client),
            server: Link::new(far, server),
            worker,
            // A new connection is an event for both.
            edges: [true; 2],
            cut: [false; 2],
            silent_since_ms: None,
        }
    }

    /// One end goes away.
    pub(crate) fn cut(&mut self, end: usize) {
        self.cut[end] = true;
    }

    /// Whether it is over for an end: by itself, or because it hears that the other is gone.
    pub(crate) fn is_over(&self, end: usize) -> bool {
        let gone = [self.cut[0] || self.client.is_over(), self.cut[1] || self.server.is_over()];
        gone[end] || self.silent_since_ms.is_none() && gone[1 - end]
    }

    /// Nothing comes through any more; says whether something did before.
    pub(crate) fn fall_silent(&mut self, now_ms: u64) -> bool {
        let falls = self.silent_since_ms.is_none();
        self.silent_since_ms.get_or_insert(now_ms);
        falls
    }

    /// Carries bytes, in pieces, and tells each end of its edges: once. The delay and the size of a piece are of each
    /// direction.
    pub(crate) fn carry(&mut self, now_ms: u64, delays: [u64; 2], pieces: [usize; 2]) {
        if let Some(since) = self.silent_since_ms {
            let gives_up = now_ms >= since + UNACKNOWLEDGED_MAX_MS && !self.cut[1];
            self.cut[1] |= gives_up;
            self.edges[1] |= gives_up;
            return;
        }
        let [client, server] =
            [&mut self.client, &mut self.server].map(|link| link.socket_mut().clone());
        for (from, to, end) in [(&client, &server, 0), (&server, &client, 1)] {
            let moved = from.carry(to, now_ms, delays[end], pieces[end]);
            self.edges[1 - end] |= moved.readable;
            self.edges[end] |= moved.writable;
            let reader = if end == 0 { &mut self.server } else { &mut self.client };
            if moved.readable {
                reader.set_readable();
            }
        }
    }
}
