//! Sockets, timers, mio: drives sessions.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt;

use crate::limit::Limit;
use crate::session::close::Ended;
use crate::session::{Config, Session};

/// A connection of a [`Net`]; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub usize);

/// All connections of one process.
pub struct Net {
    poll: Poll,
    events: Events,
    listener: Option<TcpListener>,
    links: BTreeMap<LinkId, Link>,
    next_id: usize,
    started: Instant,
    input: Vec<u8>,
    config: Arc<Config>,
    limit: Option<Limit>,
}

/// A connection that is over.
#[derive(Debug)]
pub struct Over {
    /// Which one.
    pub id: LinkId,
    /// The other end.
    pub address: SocketAddr,
    /// The session, as it stood.
    pub session: Session,
    /// Why it is over.
    pub why: Ended,
}

struct Link {
    socket: TcpStream,
    address: SocketAddr,
    session: Session,
    readable: bool,
    eof: bool,
    ended: Option<Ended>,
}

const LISTENER: Token = Token(0);
/// Most connections at a time, verified or not.
const LINKS_MAX: usize = 256;
/// Bytes read from a socket at a time.
const INPUT_LEN: usize = 128 << 10;
/// After so long without an answer of the other end's system a connection is broken.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Reads of one link before the others have their turn.
const READS_MAX: usize = 16;

impl Net {
    /// No connections yet.
    ///
    /// # Errors
    /// When the system has no poll instance to give.
    pub fn new(config: Arc<Config>) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(LINKS_MAX),
            listener: None,
            links: BTreeMap::new(),
            next_id: 1,
            started: Instant::now(),
            input: vec![0; INPUT_LEN],
            config,
            limit: None,
        })
    }

    /// What we are and whom we accept from now on; open connections stay as they are.
    pub fn set_config(&mut self, config: Arc<Config>) {
        self.config = config;
    }

    /// Lets one address connect at most so often a minute; more are closed at once.
    pub fn set_limit(&mut self, per_minute: u32) {
        self.limit = Some(Limit::new(per_minute));
    }

    /// Accepts connections on `port` of every address.
    ///
    /// # Errors
    /// When the port is taken or not allowed.
    pub fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let mut listener = TcpListener::bind(address)?;
        self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let local = listener.local_addr()?;
        self.listener = Some(listener);
        Ok(local)
    }

    /// Opens a connection to `host:port`; the name is also what TLS asks for.
    ///
    /// # Errors
    /// When the host is unknown or the system refuses at once.
    pub fn connect(&mut self, host_and_port: &str) -> io::Result<LinkId> {
        let host = host_and_port.rsplit_once(':').map_or(host_and_port, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut addresses = host_and_port.to_socket_addrs()?.collect::<Vec<_>>();
        // Most listeners have an IPv4 socket; the order of the resolver is kept otherwise.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let address =
            addresses.first().ok_or_else(|| io::Error::other("the name has no address"))?;
        let socket = TcpStream::connect(*address)?;
        let session = Session::client(Arc::clone(&self.config), host, self.started.elapsed())
            .map_err(io::Error::other)?;
        self.add(socket, *address, session)
    }

    /// The identifiers of all connections.
    pub fn ids(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    /// A connection's session, until the connection is removed.
    pub fn session(&mut self, id: LinkId) -> Option<&mut Session> {
        self.links.get_mut(&id).map(|link| &mut link.session)
    }

    /// The other end of a connection, until the connection is removed.
    pub fn address(&self, id: LinkId) -> Option<SocketAddr> {
        self.links.get(&id).map(|link| link.address)
    }

    /// Waits for something to happen, at most for `timeout`, and gives sessions their input. `job` is
    /// the digest for new connections to us.
    ///
    /// # Errors
    /// When the system's poll fails.
    pub fn poll(&mut self, timeout: Duration, job: &[u8; 32]) -> io::Result<()> {
        let idle = self.links.values().all(|link| !link.wants_read());
        let timeout = if idle { timeout.min(self.next_timeout()) } else { Duration::ZERO };
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        let mut accept = false;
        for event in &self.events {
            match self.links.get_mut(&LinkId(event.token().0)) {
                Some(link) => link.readable |= event.is_readable() || event.is_read_closed(),
                None => accept |= event.token() == LISTENER,
            }
        }
        if accept {
            self.accept(job)?;
        }
        let now = self.started.elapsed();
        for link in self.links.values_mut() {
            link.read(&mut self.input);
            if let Err(why) = link.session.handle_timeout(now) {
                link.end(why);
            }
        }
        Ok(())
    }

    /// Lets the role work on a session and sends what it says. `work` returns whether it has more to
    /// say once everything is sent.
    pub fn drive(&mut self, id: LinkId, mut work: impl FnMut(&mut Session) -> Result<bool, Ended>) {
        let Some(link) = self.links.get_mut(&id) else { return };
        while link.ended.is_none() {
            let more = match work(&mut link.session) {
                Ok(more) => more,
                Err(why) => {
                    link.end(why);
                    false
                }
            };
            link.flush();
            if !more || link.session.wants_output() {
                break;
            }
        }
        if link.eof && link.ended.is_none() && !link.session.wants_output() {
            link.end(Ended::ByPeer);
        }
    }

    /// Waits until everything is sent on all connections, at most for `timeout`.
    ///
    /// # Errors
    /// When the system's poll fails.
    pub fn flush(&mut self, timeout: Duration) -> io::Result<()> {
        let until = Instant::now() + timeout;
        loop {
            for link in self.links.values_mut().filter(|link| link.ended.is_none()) {
                link.flush();
            }
            let waiting = |link: &Link| link.ended.is_none() && link.session.wants_output();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.links.values().any(waiting) {
                return Ok(());
            }
            match self.poll.poll(&mut self.events, Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            for event in &self.events {
                if let Some(link) = self.links.get_mut(&LinkId(event.token().0)) {
                    link.readable |= event.is_readable() || event.is_read_closed();
                }
            }
        }
    }

    /// Removes the connections that are over and says why.
    pub fn take_ended(&mut self) -> Vec<Over> {
        let over: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| link.ended.is_some()).map(|(id, _)| *id).collect();
        let mut ended = Vec::new();
        for id in over {
            let Some(mut link) = self.links.remove(&id) else { continue };
            // Closing the socket deregisters it too; a failure here changes nothing.
            let _ = self.poll.registry().deregister(&mut link.socket);
            if let Some(why) = link.ended {
                let Link { address, session, .. } = link;
                ended.push(Over { id, address, session, why });
            }
        }
        ended
    }

    fn next_timeout(&self) -> Duration {
        let now = self.started.elapsed();
        let next = self.links.values().filter_map(|link| link.session.timeout()).min();
        next.map_or(Duration::MAX, |at| at.saturating_sub(now))
    }

    fn accept(&mut self, job: &[u8; 32]) -> io::Result<()> {
        loop {
            let Some(listener) = &self.listener else { return Ok(()) };
            let (socket, address) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    log::warn!("accept: {error}");
                    return Ok(());
                }
            };
            let now = self.started.elapsed();
            if self.limit.as_mut().is_some_and(|limit| !limit.allows(address.ip(), now)) {
                log::warn!("{address}: refused, it connects too often");
                continue;
            }
            if self.links.len() >= LINKS_MAX {
                log::warn!("{address}: refused, {LINKS_MAX} connections are open");
                continue;
            }
            match Session::server(Arc::clone(&self.config), *job, now) {
                Ok(session) => self.add(socket, address, session).map(|_| ())?,
                Err(why) => log::warn!("{address}: {why}"),
            }
        }
    }

    fn add(
        &mut self,
        mut socket: TcpStream,
        address: SocketAddr,
        session: Session,
    ) -> io::Result<LinkId> {
        notice_silence(&socket)?;
        let id = LinkId(self.next_id);
        self.next_id += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(id.0), interest)?;
        let link = Link { socket, address, session, readable: false, eof: false, ended: None };
        self.links.insert(id, link);
        Ok(id)
    }
}

/// Small messages go at once, and a host that vanished without a word is noticed: unanswered bytes and
/// unanswered probes end the connection.
fn notice_silence(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, SILENCE_MAX / 2)?;
    sockopt::set_tcp_keepintvl(socket, SILENCE_MAX / 6)?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    Ok(sockopt::set_tcp_user_timeout(socket, SILENCE_MAX.as_millis() as u32)?)
}

impl Link {
    fn wants_read(&self) -> bool {
        self.readable && !self.eof && self.ended.is_none() && self.session.wants_input()
    }

    fn read(&mut self, input: &mut [u8]) {
        for _ in 0..READS_MAX {
            if !self.wants_read() {
                return;
            }
            match self.socket.read(input) {
                Ok(0) => self.eof = true,
                Ok(len) => {
                    if let Err(why) = self.session.receive(&input[..len]) {
                        self.end(why);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.end(Ended::Io(error)),
            }
        }
    }

    fn flush(&mut self) {
        match self.session.output(&mut self.socket) {
            Ok(()) => {}
            // Not connected yet: the handshake waits for the writable event.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => self.end(Ended::Io(error)),
        }
    }

    /// Ends the link; the last words (an alert, a refusal) are sent if the socket takes them.
    fn end(&mut self, why: Ended) {
        if self.ended.is_none() {
            let _ = self.session.output(&mut self.socket);
            self.ended = Some(why);
        }
    }
}
