//! Support: how hostile a simulated network and its machines are, and what came of a run.

use std::collections::BTreeMap;

use hfl::job::state::{Found, State};
use hfl::training::contradiction::Kind;
use hfl::training::rounds::RoundLog;

/// How hostile the network and the machines are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// Longest delay of a packet.
    pub(crate) delay_ms_max: u64,
    /// In a thousand packets, how many connections break.
    pub(crate) broken_per_mille: u32,
    /// In a thousand packets, how many are the last that come through, without either end being told.
    pub(crate) silent_per_mille: u32,
    /// In a thousand virtual seconds, how often a worker or the server dies.
    pub(crate) deaths_per_mille: u32,
    /// How long worker 1 computes, and looks at nothing else meanwhile.
    pub(crate) late_ms: u64,
    /// It does so in steps that are a multiple of this.
    pub(crate) late_every: u64,
    /// The step in which worker 2 sends what is no number.
    pub(crate) bad_step: Option<u64>,
    /// The step for which worker 2 is asked when it leaves for good.
    pub(crate) leaves_step: Option<u64>,
    /// What is done to the checkpoint from which the server goes on after its third step.
    pub(crate) lie: Option<fn(&mut State)>,
}

pub(crate) const QUIET: Faults = Faults {
    delay_ms_max: 1,
    broken_per_mille: 0,
    silent_per_mille: 0,
    deaths_per_mille: 0,
    late_ms: 0,
    late_every: 1,
    bad_step: None,
    leaves_step: None,
    lie: None,
};

/// What a run ends with.
#[derive(Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) params: Vec<u32>,
    /// Updates that were done.
    pub(crate) step: u64,
    /// Right and all images of each evaluation, by its step.
    pub(crate) evaluations: BTreeMap<u64, [u64; 2]>,
    pub(crate) found: Found,
    pub(crate) deaths: u32,
    pub(crate) broken: u32,
    /// Connections that fell silent.
    pub(crate) silent: u32,
    /// Connections that were made.
    pub(crate) connections: usize,
    /// Steps that workers computed.
    pub(crate) computed: u64,
    /// Who contributed to what.
    pub(crate) rounds: RoundLog,
    /// What the server said.
    pub(crate) notes: Vec<String>,
    /// What workers were told that cannot be.
    pub(crate) contradictions: Vec<Kind>,
    /// Cells of parameters that the server sent while their round still ran, and after it.
    pub(crate) sent: [u64; 2],
    /// Forward passes that began before all parameters were there: those that came to their end, and others.
    pub(crate) ahead: [u32; 2],
}
