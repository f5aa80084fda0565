//! `Socket`: a connection that may still wait for its address.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

/// A stream, or none as long as the name of the other end is looked up.
#[derive(Debug, Default)]
pub(super) struct Socket(Option<TcpStream>);

impl Socket {
    /// The stream, if there is one.
    pub(super) fn stream_mut(&mut self) -> Option<&mut TcpStream> {
        self.0.as_mut()
    }

    fn connected(&mut self) -> io::Result<&mut TcpStream> {
        self.0.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self(Some(stream))
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.connected()?.read(bytes)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connected()?.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice]) -> io::Result<usize> {
        self.connected()?.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connected()?.flush()
    }
}
