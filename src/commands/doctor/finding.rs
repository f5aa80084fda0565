//! One thing that was looked at, and how it stands.

use serde::Serialize;

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Standing {
    Ok,
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// What.
    pub(crate) item: &'static str,
    /// How it stands.
    pub(crate) standing: Standing,
    /// What was found.
    pub(crate) found: String,
    /// What to do about it.
    pub(crate) advice: Option<&'static str>,
}

impl Finding {
    pub(crate) fn ok(item: &'static str, found: impl Into<String>) -> Self {
        Self { item, standing: Standing::Ok, found: found.into(), advice: None }
    }

    pub(crate) fn warning(
        item: &'static str,
        found: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self { item, standing: Standing::Warning, found: found.into(), advice: Some(advice) }
    }

    pub(crate) fn failed(
        item: &'static str,
        found: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self { item, standing: Standing::Failed, found: found.into(), advice: Some(advice) }
    }
}

/// What failed, without what to try.
pub(super) fn first_line(text: &impl ToString) -> String {
    let text = text.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("hfl: ").to_owned()
}
