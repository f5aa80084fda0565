//! Support: a pair of sockets in memory that behave as the system's do under edge-triggered readiness: writes that
//! are cut short, buffers that are full, and edges that are told once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

/// One end; clones are the same end.
#[derive(Clone)]
pub(crate) struct Socket(Rc<RefCell<End>>);

struct End {
    /// Bytes that were written, until they are carried on.
    sent: VecDeque<u8>,
    /// Most bytes that are written and not read yet: what both systems buffer.
    room: usize,
    /// Bytes of ours that the other end has not read.
    unread: usize,
    /// A write was refused since there was room: an edge will tell of it.
    refused: bool,
    /// Bytes on their way, with their time of arrival.
    flying: VecDeque<(u64, Vec<u8>)>,
    arrived: VecDeque<u8>,
    /// Bytes that were read since the other end was told.
    read: usize,
}

/// The edges that carrying bytes made: for who reads them, and for who wrote them.
pub(crate) struct Edges {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

/// Two ends that take so many bytes each.
pub(crate) fn pair(room: [usize; 2]) -> [Socket; 2] {
    room.map(|room| {
        Socket(Rc::new(RefCell::new(End {
            sent: VecDeque::new(),
            room,
            unread: 0,
            refused: false,
            flying: VecDeque::new(),
            arrived: VecDeque::new(),
            read: 0,
        })))
    })
}

impl Socket {
    /// Whether bytes of this end are on their way.
    pub(crate) fn is_busy(&self) -> bool {
        let end = self.0.borrow();
        !end.sent.is_empty() || !end.flying.is_empty()
    }

    /// Takes what was written, lets it fly for `delay`, and delivers at most a piece of what has arrived.
    pub(crate) fn carry(&self, to: &Socket, now: u64, delay: u64, piece: usize) -> Edges {
        let (mut from, mut to) = (self.0.borrow_mut(), to.0.borrow_mut());
        if !from.sent.is_empty() {
            let last = from.flying.back().map_or(0, |(at, _)| *at);
            let bytes = from.sent.drain(..).collect();
            from.flying.push_back(((now + delay).max(last), bytes));
        }
        let mut readable = false;
        if let Some((at, bytes)) = from.flying.front_mut()
            && *at <= now
        {
            let piece = piece.min(bytes.len());
            to.arrived.extend(bytes.drain(..piece));
            readable = piece > 0;
            if bytes.is_empty() {
                from.flying.pop_front();
            }
        }
        from.unread -= std::mem::take(&mut to.read);
        let writable = from.refused && from.unread < from.room;
        from.refused &= !writable;
        Edges { readable, writable }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut end = self.0.borrow_mut();
        let len = end.arrived.len().min(buffer.len());
        if len == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        for (target, byte) in buffer.iter_mut().zip(end.arrived.drain(..len)) {
            *target = byte;
        }
        end.read += len;
        Ok(len)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut end = self.0.borrow_mut();
        let len = bytes.len().min(end.room - end.unread);
        if len == 0 {
            end.refused = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        end.sent.extend(&bytes[..len]);
        end.unread += len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
