//! Reports that are kept in a document, so that it cannot say what is not so.

use super::report::Report;

/// The document whose sections must say what complete runs come to.
const DOCUMENT: &str = "ANYQUEUE_CONFORMANCE_DOC";
/// Rewrites the section instead.
const UPDATE: &str = "UPDATE_DOCS";
/// Stands in a section until a complete run has filled it.
const UNRECORDED: &str = "Not recorded yet.";

/// The section of a document in Markdown under the heading `### name`, heading included, up to the next heading.
///
/// ```
/// use queue_core::conformance::section;
///
/// let document = "# Cases\n\n### mine\n\n12 cases run.\n\n### other\n";
/// assert_eq!(section(document, "mine"), Some("### mine\n\n12 cases run.\n\n"));
/// ```
#[must_use]
pub fn section<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let heading = format!("### {name}\n");
    let start = match document.starts_with(&heading) {
        true => 0,
        false => document.find(&format!("\n{heading}"))? + 1,
    };
    let body = start + heading.len();
    let end = document[body..].find("\n#").map_or(document.len(), |at| body + at + 1);
    Some(&document[start..end])
}

/// Compares the report of a complete run with its section of the document that the environment names, or puts it there;
/// says what was done, and `Err` when the document says something else.
pub(super) fn compare(report: &Report) -> Result<Option<String>, String> {
    let Ok(path) = std::env::var(DOCUMENT) else { return Ok(None) };
    let document = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let Some(recorded) = section(&document, &report.name) else {
        return Ok(Some(format!("{path} has no section `### {}`", report.name)));
    };
    let present = report.to_markdown();
    if recorded.trim_end() == present.trim_end() {
        return Ok(None);
    }
    if std::env::var(UPDATE).as_deref() != Ok("1") {
        if recorded.contains(UNRECORDED) {
            return Ok(Some(format!("{path} has no report of `{}` yet; {UPDATE}=1 puts it there", report.name)));
        }
        return Err(format!("{path} says something else of `{}`; {UPDATE}=1 rewrites it to:\n{present}", report.name));
    }
    let changed = document.replacen(recorded.trim_end(), present.trim_end(), 1);
    std::fs::write(&path, changed).map_err(|e| format!("{path}: {e}"))?;
    Ok(Some(format!("{path} is updated")))
}
