//! `Asking`: the question that a session has about evidence, and what it will look at again with the answer.

use crate::judge::question::{Answer, Question};
use crate::session::roster::Entry;

/// What a session wants to know from a service, if anything.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// For the session's owner to take.
    question: Option<Question>,
    again: Option<Again>,
    answer: Option<Answer>,
}

/// What is judged once the answer is there.
#[derive(Debug)]
pub(super) enum Again {
    /// The peer's evidence.
    Evidence {
        /// Its quote.
        quote: Vec<u8>,
        /// What it brought to judge it by.
        collateral: Vec<u8>,
    },
    /// Somebody whom the server admitted.
    Fellow(Box<Entry>),
}

impl Asking {
    /// Asks, if there is a question, and goes on meanwhile. One that was not taken yet stays.
    pub(super) fn mention(&mut self, question: Option<Question>) {
        self.question = question.or_else(|| self.question.take());
    }

    /// Asks, and looks at nothing else before the answer.
    pub(super) fn wait(&mut self, question: Question, again: Again) {
        (self.question, self.again) = (Some(question), Some(again));
    }

    /// Whether nothing else is looked at.
    pub(super) fn is_waiting(&self) -> bool {
        self.again.is_some()
    }

    /// The question, once.
    pub(super) fn take_question(&mut self) -> Option<Question> {
        self.question.take()
    }

    /// The answer; it means nothing to who does not wait.
    pub(super) fn set_answer(&mut self, answer: &Answer) {
        if self.is_waiting() && !matches!(answer, Answer::Quote(..)) {
            self.answer = Some(answer.clone());
        }
    }

    /// What is to be judged again, if the answer is there, which stays.
    pub(super) fn answered(&mut self) -> Option<Again> {
        self.again.take_if(|_| self.answer.is_some())
    }

    /// The answer, once.
    pub(super) fn take_answer(&mut self) -> Option<Answer> {
        self.answer.take()
    }
}
