//! The server's part of who has which classes: it is told at the start of a job where they differ much.

use super::ParameterServer;
use crate::job::skew;
use crate::training::note::Note;

impl ParameterServer {
    /// Looks once, when all workers of a job that begins have joined.
    pub(super) fn judge_classes(&mut self) {
        if self.has_judged_classes || self.state.step > 0 {
            return;
        }
        self.has_judged_classes = true;
        let members = self.state.members.iter().flatten();
        let counts: Vec<&[u64]> = members.map(|member| &*member.classes).collect();
        let advice = skew::advice(&counts, self.job.norm, self.job.init.is_some());
        self.notes.extend(advice.map(Note::Advised));
    }
}
