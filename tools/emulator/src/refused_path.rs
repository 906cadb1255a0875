//! What to do about a path that the operating system refuses. Knows the usual reasons; must not know what the path is for.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::path::Path;

/// The end of an error message; nothing, if there is no advice.
pub(crate) struct Advice<'a>(pub &'a Path, pub &'a Error);

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = self.0.parent().filter(|folder| !folder.as_os_str().is_empty());
        match (self.1.kind(), folder) {
            (ErrorKind::NotFound, Some(folder)) => {
                write!(f, "; correct the path, or make the folder first: mkdir -p {}", folder.display())
            }
            (ErrorKind::PermissionDenied, _) => {
                f.write_str("; run it as a user who may, or name another path")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_reasons_have_advice() {
        let advice = |path: &str, kind: ErrorKind| Advice(path.as_ref(), &kind.into()).to_string();
        assert!(advice("/a/b/c", ErrorKind::NotFound).ends_with("mkdir -p /a/b"));
        assert!(advice("/a/b", ErrorKind::PermissionDenied).contains("as a user who may"));
        assert_eq!(advice("c", ErrorKind::NotFound), "");
        assert_eq!(advice("/a/b", ErrorKind::AddrInUse), "");
    }
}
