//! `Question`: what only a service can tell about evidence. Asking blocks, so who waits for others too hands it to a
//! thread and judges again with the [`Answer`].

use std::fmt;
use std::sync::Arc;

use ring::digest::{SHA256, digest};

use crate::Attester;
use crate::evidence::quote::TdReport;
use crate::judge::dcap::{Origin, Status};
use crate::judge::remote::{RemoteError, RemoteVerifier};
use crate::services::collateral_store::CollateralStore;

/// Something to ask a service.
#[derive(Clone)]
pub(crate) enum Question {
    /// The collateral of a kind of platform; it comes to lie in the store.
    Collateral(Arc<CollateralStore>, Origin),
    /// Whether a quote is worth believing.
    Appraisal(Box<Appraisal>),
    /// A quote of our own over report data.
    Quote(Option<Arc<dyn Attester>>, [u8; 64]),
}

/// What a remote verifier is asked.
#[derive(Clone, Debug)]
pub(crate) struct Appraisal {
    pub(crate) service: Arc<RemoteVerifier>,
    pub(crate) quote: Vec<u8>,
    pub(crate) report: TdReport,
    pub(crate) now: u64,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The store has what there is.
    Collateral,
    /// What the remote verifier says of the quote with this SHA-256, and of no other.
    Appraisal([u8; 32], Result<Status, RemoteError>),
    /// Our quote over this report data, or why there is none; empty where an owner's key stands in its place.
    Quote([u8; 64], Result<Vec<u8>, String>),
}

impl Answer {
    /// What the remote verifier says of a quote, if this is about that.
    pub(crate) fn of_quote(self, quote: &[u8]) -> Option<Result<Status, RemoteError>> {
        match self {
            Self::Appraisal(of, status) if of == sha256(quote) => Some(status),
            _ => None,
        }
    }
}

fn sha256(quote: &[u8]) -> [u8; 32] {
    digest(&SHA256, quote).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Collateral(_, origin) => write!(f, "Collateral({origin:?})"),
            Self::Appraisal(_) => f.write_str("Appraisal"),
            Self::Quote(..) => f.write_str("Quote"),
        }
    }
}

impl Question {
    /// Asks. Blocks until the service answers or is given up.
    pub(crate) fn ask(&self) -> Answer {
        match self {
            Self::Collateral(store, origin) => {
                store.refresh(*origin);
                Answer::Collateral
            }
            Self::Appraisal(asked) => {
                let Appraisal { service, quote, report, now } = &**asked;
                Answer::Appraisal(sha256(quote), service.appraise(quote, report, *now))
            }
            Self::Quote(attester, over) => {
                let made = attester.as_ref().map_or(Ok(Vec::new()), |from| from.quote(over));
                Answer::Quote(*over, made.map_err(|error| error.to_string()))
            }
        }
    }

    /// The answer where it cannot even be asked.
    pub(crate) fn unasked(&self, why: &str) -> Answer {
        match self {
            Self::Collateral(..) => Answer::Collateral,
            Self::Appraisal(asked) => {
                let failed = Err(RemoteError::Service(why.to_owned()));
                Answer::Appraisal(sha256(&asked.quote), failed)
            }
            Self::Quote(_, over) => Answer::Quote(*over, Err(why.to_owned())),
        }
    }

    /// Whether it is about our own evidence: what others keep waiting does not keep that waiting.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Self::Quote(..))
    }

    /// Whether the answer to the one is the answer to the other. Each quote is judged by itself.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Collateral(store, origin), Self::Collateral(other_store, other)) => {
                Arc::ptr_eq(store, other_store) && origin == other
            }
            _ => false,
        }
    }
}
