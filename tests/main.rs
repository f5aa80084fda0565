//! The one test binary of the program; see each module's first line.

mod parity;
