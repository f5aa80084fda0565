//! Sockets, timers, mio: drives sessions.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::net::sockopt;

use crate::limit::Limit;
use crate::session::close::Ended;
use crate::session::link::Link;
use crate::session::{Config, Session};

/// A connection of a [`Net`]; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub usize);

/// All connections of one process.
pub struct Net {
    poll: Poll,
    events: Events,
    listeners: Vec<TcpListener>,
    /// Connections may wait that could not be accepted: their event has come already.
    unaccepted: bool,
    watched: Vec<OwnedFd>,
    links: BTreeMap<LinkId, Connection>,
    next_id: usize,
    /// Connections that were tried, to take the addresses of a name in turn.
    attempts: usize,
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

struct Connection {
    link: Link<TcpStream>,
    address: SocketAddr,
}

/// What somebody else watches, such as signals: it wakes us, no more.
const WATCHED: Token = Token(0);
/// The first listener; the others count down from it, identifiers of links up from 1.
const LISTENER: Token = Token(usize::MAX);
/// Most connections at a time, verified or not.
const LINKS_MAX: usize = 256;
/// Bytes read from a socket at a time.
const INPUT_LEN: usize = 128 << 10;
/// After so long without an answer of the other end's system an idle connection is broken.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// After so long without any sign that a worker's system takes what a server sends, it is gone. Not for the
/// other direction: a server leaves gradients in the socket of a worker whose turn has not come, and a full
/// window looks to this option as silence does.
const UNSENT_MAX: Duration = Duration::from_secs(60);

impl Net {
    /// No connections yet.
    ///
    /// # Errors
    /// When the system has no poll instance to give.
    pub fn new(config: Arc<Config>) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(LINKS_MAX),
            listeners: Vec::new(),
            unaccepted: false,
            watched: Vec::new(),
            links: BTreeMap::new(),
            next_id: 1,
            attempts: 0,
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

    /// Accepts connections at an address; may be called for several.
    ///
    /// # Errors
    /// When the port is taken or not allowed.
    pub fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let mut listener = TcpListener::bind(address)?;
        let token = Token(LISTENER.0 - self.listeners.len());
        self.poll.registry().register(&mut listener, token, Interest::READABLE)?;
        let local = listener.local_addr()?;
        self.listeners.push(listener);
        Ok(local)
    }

    /// Lets a descriptor end a wait when it becomes readable. Who brings it reads its copy of it.
    ///
    /// # Errors
    /// When the system cannot watch it.
    pub fn watch(&mut self, descriptor: OwnedFd) -> io::Result<()> {
        let raw = descriptor.as_raw_fd();
        let mut source = SourceFd(&raw);
        self.poll.registry().register(&mut source, WATCHED, Interest::READABLE)?;
        self.watched.push(descriptor);
        Ok(())
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
        let none = || io::Error::other("the name has no address");
        let turn = self.attempts.checked_rem(addresses.len()).ok_or_else(none)?;
        self.attempts += 1;
        let address = &addresses[turn];
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
        self.links.get_mut(&id).map(|connection| connection.link.session_mut())
    }

    /// The other end of a connection, until the connection is removed.
    pub fn address(&self, id: LinkId) -> Option<SocketAddr> {
        self.links.get(&id).map(|connection| connection.address)
    }

    /// Waits for something to happen, at most for `timeout`, and gives sessions their input. `job` is
    /// the digest for new connections to us. Without a timeout only an event ends the wait: a timeout is
    /// for what the caller wants to do at a certain time.
    ///
    /// # Errors
    /// When the system's poll fails.
    pub fn poll(&mut self, timeout: Option<Duration>, job: &[u8; 32]) -> io::Result<()> {
        // A wait that a signal ended (a process that goes on after it was stopped) looked at no socket, and would
        // take a peer for silent whose bytes are there.
        let Some(accept) = self.wait(timeout)? else { return Ok(()) };
        if accept || self.unaccepted {
            self.unaccepted = false;
            self.accept_all(job)?;
        }
        let now = self.started.elapsed();
        for Connection { link, .. } in self.links.values_mut() {
            link.read(&mut self.input);
            link.handle_timeout(now);
        }
        Ok(())
    }

    /// Whether somebody wants to connect; `None` if the wait was interrupted.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<bool>> {
        let unfinished = |link: &Link<_>| link.wants_read() || link.wants_turn();
        let unfinished = self.links.values().any(|connection| unfinished(&connection.link));
        let due = self.next_timeout();
        let timeout = match unfinished {
            true => Some(Duration::ZERO),
            false => [timeout, due].into_iter().flatten().min(),
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            result => result?,
        }
        let mut accept = false;
        for event in &self.events {
            match self.links.get_mut(&LinkId(event.token().0)) {
                Some(connection) if event.is_readable() || event.is_read_closed() => {
                    connection.link.set_readable();
                }
                Some(_) => {}
                None => accept |= event.token() != WATCHED,
            }
        }
        Ok(Some(accept))
    }

    /// Lets the role work on a session and sends what it says; see [`Link::drive`].
    pub fn drive(&mut self, id: LinkId, work: impl FnMut(&mut Session) -> Result<(), Ended>) {
        if let Some(connection) = self.links.get_mut(&id) {
            connection.link.drive(work);
        }
    }

    /// Removes the connections that are over and says why.
    pub fn take_ended(&mut self) -> Vec<Over> {
        let over = self.links.iter().filter(|(_, connection)| connection.link.is_over());
        let over: Vec<LinkId> = over.map(|(id, _)| *id).collect();
        let mut ended = Vec::new();
        for id in over {
            let Some(Connection { mut link, address }) = self.links.remove(&id) else { continue };
            // Closing the socket deregisters it too; a failure here changes nothing.
            let _ = self.poll.registry().deregister(link.socket_mut());
            if let Some((session, why)) = link.into_ended() {
                ended.push(Over { id, address, session, why });
            }
        }
        ended
    }

    /// How long until a session has to act on the time.
    fn next_timeout(&self) -> Option<Duration> {
        let live = self.links.values().map(|connection| &connection.link);
        let next = live.filter(|link| !link.is_over()).filter_map(|link| link.session().timeout());
        next.min().map(|at| at.saturating_sub(self.started.elapsed()))
    }

    fn accept_all(&mut self, job: &[u8; 32]) -> io::Result<()> {
        (0..self.listeners.len()).try_for_each(|listener| self.accept(listener, job))
    }

    fn accept(&mut self, listener: usize, job: &[u8; 32]) -> io::Result<()> {
        loop {
            let (socket, address) = match self.listeners[listener].accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The one who came left again; who came after is still there, and brings no event of its own.
                Err(error) if is_of_one(&error) => continue,
                Err(error) => {
                    log::warn!("accept: {error}");
                    self.unaccepted = true;
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
                Ok(session) => {
                    sockopt::set_tcp_user_timeout(&socket, UNSENT_MAX.as_millis() as u32)?;
                    self.add(socket, address, session)?;
                }
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
        self.links.insert(id, Connection { link: Link::new(socket, session), address });
        Ok(id)
    }
}

/// Whether an error of accept(2) is of the connection that was to be accepted, not of the process.
fn is_of_one(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable,
        TimedOut,
    };
    let kinds = [
        ConnectionAborted,
        ConnectionReset,
        HostUnreachable,
        Interrupted,
        NetworkUnreachable,
        TimedOut,
    ];
    kinds.contains(&error.kind())
}

/// Small messages go at once, and a host that vanished without a word while nothing was on its way is noticed:
/// unanswered probes of the system end the connection.
fn notice_silence(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, SILENCE_MAX / 2)?;
    sockopt::set_tcp_keepintvl(socket, SILENCE_MAX / 6)?;
    Ok(sockopt::set_tcp_keepcnt(socket, 3)?)
}
