//! Sockets, timers, mio: drives sessions.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::net::sockopt;

use crate::judge::policy::Policy;
use crate::judge::question::{Answer, Question};
use crate::limit::Limit;
use crate::session::close::CloseReason;
use crate::session::inquiry::{Inquiries, Reply, Subject};
use crate::session::link::Link;
use crate::session::places::{
    HALF_OPEN_MAX, HalfOpen, SHARE_MAX, SHARE_OVER_RATE, VERIFIED_MAX, displaced,
};
use crate::session::socket::Socket;
use crate::session::{Config, Session};

/// A connection of a [`Net`]; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub usize);

/// All connections of one process.
pub struct Net {
    poll: Poll,
    events: Events,
    listeners: Vec<TcpListener>,
    /// Connections may wait that were not accepted: their event has come already.
    unaccepted: bool,
    /// They wait because others had their turn, not because there is no room for them.
    accepts_on: bool,
    watched: Vec<OwnedFd>,
    links: BTreeMap<LinkId, Connection>,
    next_id: usize,
    /// Connections that were tried, to take the addresses of a name in turn.
    attempts: usize,
    started: Instant,
    input: Vec<u8>,
    config: Arc<Config>,
    limit: Option<Limit>,
    inquiries: Inquiries,
    /// Quotes of our own that no session asked for.
    quotes: Vec<OwnQuote>,
    crowding: Crowding,
}

/// A quote of our own, or why there is none.
#[derive(Debug)]
pub struct OwnQuote {
    /// What it is over.
    pub report_data: [u8; 64],
    /// The quote.
    pub made: Result<Vec<u8>, String>,
}

/// Connections that gave way to others, and when the log last said so.
#[derive(Debug, Default)]
struct Crowding {
    count: u64,
    said: Option<Duration>,
}

/// A connection that is over.
#[derive(Debug)]
pub struct Over {
    /// Which one.
    pub id: LinkId,
    /// The other end; nowhere, where its name was not looked up yet.
    pub address: SocketAddr,
    /// The session, as it stood.
    pub session: Session,
    /// Why it is over.
    pub why: CloseReason,
}

struct Connection {
    link: Link<Socket>,
    address: SocketAddr,
    /// Somebody came to us, else we went to him.
    is_guest: bool,
    /// It counts as one of those that come too often, until it is verified.
    is_counted: bool,
}

/// What somebody else watches, such as signals: it wakes us, no more.
const WATCHED: Token = Token(0);
/// Who asks for quotes that no session asks for: identifiers of links count from 1.
const OURSELVES: usize = 0;
/// The first listener; the others count down from it, identifiers of links up from 1.
const LISTENER: Token = Token(usize::MAX);
/// Events that are taken at a time; the rest is there at the next look.
const EVENTS_MAX: usize = 256;
/// Connections that are accepted at a time: those that are there have their turn in between.
const ACCEPTS_MAX: usize = 64;
/// How often the log says that connections gave way.
const CROWDING_SAID: Duration = Duration::from_secs(10);
/// Where nobody is.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// Bytes read from a socket at a time: eight records of TLS a call, in a buffer that a second-level
/// cache holds.
const INPUT_LEN: usize = 128 << 10;
/// After so long without an answer of the other end's system an idle connection is broken. Without it a peer whose
/// machine lost power keeps its place for ever.
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
        let poll = Poll::new()?;
        let inquiries = Inquiries::new(Waker::new(poll.registry(), WATCHED)?);
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            listeners: Vec::new(),
            unaccepted: false,
            accepts_on: false,
            watched: Vec::new(),
            links: BTreeMap::new(),
            next_id: 1,
            attempts: 0,
            started: Instant::now(),
            input: vec![0; INPUT_LEN],
            config,
            limit: None,
            inquiries,
            quotes: Vec::new(),
            crowding: Crowding::default(),
        })
    }

    /// Whom we accept from now on; open connections stay as they are.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn set_policy(&mut self, policy: Policy) -> io::Result<()> {
        self.config = Arc::new(self.config.with_policy(policy)?);
        Ok(())
    }

    /// Lets one address connect so often a minute without attesting; who attests does not count. Of an address
    /// that does more than that, only a few connections at a time are kept until they attest: it may be that of
    /// a proxy which everybody comes through, so that nobody is refused because of others.
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

    /// Opens a connection to `host:port`; the name is also what TLS asks for, and is looked up elsewhere. What
    /// comes of it is told by [`Net::take_ended`].
    ///
    /// # Errors
    /// When the name is none, or the system has no socket.
    pub fn connect(&mut self, host_and_port: &str) -> io::Result<LinkId> {
        let host = host_and_port.rsplit_once(':').map_or(host_and_port, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut session = Session::client(Arc::clone(&self.config), host, self.started.elapsed())
            .map_err(io::Error::other)?;
        session.defer_quotes();
        let id = self.insert(Socket::default(), NOWHERE, session);
        match host_and_port.parse() {
            Ok(address) => self.dial(id, address),
            Err(_) => self.inquiries.ask(id.0, Subject::Name(host_and_port.to_owned())),
        }
        Ok(id)
    }

    /// Goes on with a connection whose name is looked up.
    fn resolved(&mut self, id: LinkId, addresses: io::Result<Vec<SocketAddr>>) {
        let chosen = addresses.and_then(|mut addresses| {
            // Most listeners have an IPv4 socket; the order of the resolver is kept otherwise.
            addresses.sort_by_key(SocketAddr::is_ipv6);
            let none = || io::Error::other("the name has no address");
            let turn = self.attempts.checked_rem(addresses.len()).ok_or_else(none)?;
            self.attempts += 1;
            Ok(addresses[turn])
        });
        match chosen {
            Ok(address) => self.dial(id, address),
            Err(error) => self.fail(id, error),
        }
    }

    fn dial(&mut self, id: LinkId, address: SocketAddr) {
        let Some(connection) = self.links.get_mut(&id) else { return };
        connection.address = address;
        let dialled = TcpStream::connect(address).and_then(|socket| self.register(id, socket));
        if let Err(error) = dialled {
            self.fail(id, error);
        }
    }

    fn fail(&mut self, id: LinkId, error: io::Error) {
        if let Some(connection) = self.links.get_mut(&id) {
            connection.link.end(CloseReason::Io(error));
        }
    }

    /// The identifiers of all connections.
    pub fn ids(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    /// A connection's session, until the connection is removed.
    pub fn session(&mut self, id: LinkId) -> Option<&mut Session> {
        self.links.get_mut(&id).map(|connection| connection.link.session_mut())
    }

    /// Whether a connection is over.
    pub fn is_over(&self, id: LinkId) -> bool {
        self.links.get(&id).is_none_or(|connection| connection.link.is_over())
    }

    /// Whether a connection has more to read than the last [`Net::poll`] took: the next does not wait.
    pub fn has_more(&self, id: LinkId) -> bool {
        self.links.get(&id).is_some_and(|connection| connection.link.wants_read())
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
            (self.unaccepted, self.accepts_on) = (false, false);
            self.accept_all(job);
        }
        self.take_replies();
        let now = self.started.elapsed();
        for Connection { link, .. } in self.links.values_mut() {
            link.read(&mut self.input);
            link.handle_timeout(now);
        }
        Ok(())
    }

    /// Whether somebody wants to connect; `None` if the wait was interrupted.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<bool>> {
        let wants_turn = |link: &Link<_>| link.wants_read() || link.wants_turn() || link.is_over();
        let unfinished = self.links.values().any(|connection| wants_turn(&connection.link));
        let due = self.next_timeout();
        let timeout = match unfinished || self.accepts_on {
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
    pub fn drive(&mut self, id: LinkId, work: impl FnMut(&mut Session) -> Result<(), CloseReason>) {
        let Some(Connection { link, address, is_counted, .. }) = self.links.get_mut(&id) else {
            return;
        };
        link.drive(work);
        while let Some(question) = link.session_mut().take_question() {
            self.inquiries.ask(id.0, Subject::Evidence(question));
        }
        if *is_counted && link.session().is_open() {
            *is_counted = false;
            let ip = address.ip();
            self.limit.as_mut().into_iter().for_each(|limit| limit.give_back(ip));
        }
    }

    /// Has a quote of our own made over this report data, elsewhere than where peers wait: [`Net::take_quote`] has it
    /// after a later [`Net::poll`].
    pub fn ask_quote(&mut self, report_data: [u8; 64]) {
        let question = Question::Quote(self.config.attester.clone(), report_data);
        self.inquiries.ask(OURSELVES, Subject::Evidence(question));
    }

    /// The next quote that [`Net::ask_quote`] asked for.
    pub fn take_quote(&mut self) -> Option<OwnQuote> {
        self.quotes.pop()
    }

    /// Hands out what was found out.
    fn take_replies(&mut self) {
        while let Some((waiting, reply)) = self.inquiries.next_reply() {
            match reply {
                Reply::Evidence(Answer::Quote(report_data, made)) if waiting == [OURSELVES] => {
                    self.quotes.push(OwnQuote { report_data, made });
                }
                Reply::Evidence(answer) => {
                    for id in waiting {
                        if let Some(session) = self.session(LinkId(id)) {
                            session.answer(&answer);
                        }
                    }
                }
                Reply::Name(addresses) => {
                    if let Some(id) = waiting.first() {
                        self.resolved(LinkId(*id), addresses);
                    }
                }
            }
        }
    }

    /// Removes the connections that are over and says why.
    pub fn take_ended(&mut self) -> Vec<Over> {
        let over = self.links.iter().filter(|(_, connection)| connection.link.is_over());
        let over: Vec<LinkId> = over.map(|(id, _)| *id).collect();
        let mut ended = Vec::new();
        for id in over {
            let Some(Connection { link, address, .. }) = self.remove(id) else { continue };
            if let Some((session, why)) = link.into_ended() {
                ended.push(Over { id, address, session, why });
            }
        }
        ended
    }

    fn remove(&mut self, id: LinkId) -> Option<Connection> {
        self.inquiries.forget(id.0);
        let mut connection = self.links.remove(&id)?;
        if let Some(socket) = connection.link.socket_mut().stream_mut() {
            // Closing the socket deregisters it too; a failure here changes nothing.
            let _ = self.poll.registry().deregister(socket);
        }
        Some(connection)
    }

    /// How long until a session has to act on the time.
    fn next_timeout(&self) -> Option<Duration> {
        let live = self.links.values().map(|connection| &connection.link);
        let next = live.filter(|link| !link.is_over()).filter_map(|link| link.session().timeout());
        next.min().map(|at| at.saturating_sub(self.started.elapsed()))
    }

    fn accept_all(&mut self, job: &[u8; 32]) {
        (0..self.listeners.len()).for_each(|listener| self.accept(listener, job));
    }

    fn accept(&mut self, listener: usize, job: &[u8; 32]) {
        for _ in 0..ACCEPTS_MAX {
            let (socket, address) = match self.listeners[listener].accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The one who came left again; who came after is still there, and brings no event of its own.
                Err(error) if is_of_one(&error) => continue,
                Err(error) => {
                    log::warn!("accept: {error}");
                    self.unaccepted = true;
                    return;
                }
            };
            self.receive(socket, address, job);
        }
        (self.unaccepted, self.accepts_on) = (true, true);
    }

    /// Takes a guest in, if there is a place.
    fn receive(&mut self, socket: TcpStream, address: SocketAddr, job: &[u8; 32]) {
        let now = self.started.elapsed();
        let is_over_rate =
            self.limit.as_mut().is_some_and(|limit| !limit.allows(address.ip(), now));
        if self.links.len() - self.half_open().len() >= VERIFIED_MAX {
            log::warn!("{address}: refused, {VERIFIED_MAX} verified peers are connected");
            return;
        }
        let share = if is_over_rate { SHARE_OVER_RATE } else { SHARE_MAX };
        if let Some(id) = displaced(&self.half_open(), address.ip(), share) {
            self.remove(LinkId(id));
            self.say_crowded(now);
        }
        let session = match Session::server(Arc::clone(&self.config), *job, now) {
            Ok(mut session) => {
                session.defer_quotes();
                session
            }
            Err(why) => {
                log::warn!("{address}: {why}");
                return;
            }
        };
        let id = self.insert(Socket::default(), address, session);
        if let Some(connection) = self.links.get_mut(&id) {
            connection.is_guest = true;
            connection.is_counted = self.limit.is_some() && !is_over_rate;
        }
        // What is wrong with one guest's socket ends nobody else's.
        let taken = sockopt::set_tcp_user_timeout(&socket, UNSENT_MAX.as_millis() as u32)
            .map_err(io::Error::from)
            .and_then(|()| self.register(id, socket));
        if let Err(error) = taken {
            self.fail(id, error);
        }
    }

    /// Guests that have not attested yet.
    fn half_open(&self) -> Vec<HalfOpen> {
        let guests = self.links.iter().filter(|(_, connection)| connection.is_guest);
        let unverified = guests.filter(|(_, connection)| !connection.link.session().is_open());
        let half_open = |(id, connection): (&LinkId, &Connection)| HalfOpen {
            id: id.0,
            address: connection.address.ip(),
            has_certificate: connection.link.session().has_certificate(),
        };
        unverified.map(half_open).collect()
    }

    fn say_crowded(&mut self, now: Duration) {
        let Crowding { count, said } = &mut self.crowding;
        *count += 1;
        if said.is_none_or(|said| now.saturating_sub(said) >= CROWDING_SAID) {
            log::warn!(
                "{count} connections that did not attest gave way to others (at most {HALF_OPEN_MAX}, \
                 {SHARE_MAX} of one address)"
            );
            (*count, *said) = (0, Some(now));
        }
    }

    fn insert(&mut self, socket: Socket, address: SocketAddr, session: Session) -> LinkId {
        let id = LinkId(self.next_id);
        self.next_id += 1;
        let link = Link::new(socket, session);
        let connection = Connection { link, address, is_guest: false, is_counted: false };
        self.links.insert(id, connection);
        id
    }

    /// Gives a connection its socket.
    fn register(&mut self, id: LinkId, mut socket: TcpStream) -> io::Result<()> {
        notice_silence(&socket)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(id.0), interest)?;
        if let Some(connection) = self.links.get_mut(&id) {
            *connection.link.socket_mut() = Socket::from(socket);
        }
        Ok(())
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

#[cfg(test)]
mod tests;
