//! The one test binary of the program; see each module's first line.

mod cli;
mod cluster;
mod container;
mod doctor;
mod export;
mod fuzz_seeds;
mod guest;
mod layers;
mod licences;
mod metrics;
mod network;
mod own_data;
mod parity;
mod processes;
mod report;
mod room;
mod secrets;
mod socket;
mod static_binary;
mod step;
mod tidy;
mod train;
mod verify;
mod volume_keys;
mod volumes;
