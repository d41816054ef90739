//! Files that options name: passwords, tokens, certificates. For adapters.

use std::io::Read as _;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;

/// Far above what a broker takes as a token, a password, or a list of authorities.
const MAX_FILE: u64 = 4 << 20;

/// Reads a small file. Blocks as long as the file system does.
///
/// # Errors
/// `InvalidConfig` naming the file, when it cannot be read or has more than 4 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path);
    match opened.and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > MAX_FILE => Err(bad(path, "the file has more than 4 MiB")),
        Ok(_) => Ok(bytes),
        Err(error) => Err(bad(path, "the file cannot be read").with_source(error)),
    }
}

/// Reads the text of a file, without white space at its end. Blocks as long as the file system does.
///
/// # Errors
/// As [`read`], and where the file is empty or not text.
pub fn secret(path: &Path) -> Result<Secret> {
    let bytes = read(path)?;
    match std::str::from_utf8(&bytes).map(str::trim_end) {
        Ok("") => Err(bad(path, "the file is empty")),
        Ok(text) if text.contains('\0') => Err(bad(path, "the file is not text")),
        Ok(text) => Ok(Secret::from(text)),
        Err(_) => Err(bad(path, "the file is not text")),
    }
}

/// What is wrong with a file.
#[must_use]
pub fn bad(path: &Path, why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, why).with_operation("connect").with_context("file", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let path = std::env::temp_dir().join(format!("anyqueue-large-{}", std::process::id()));
        let length = usize::try_from(MAX_FILE).unwrap();
        std::fs::write(&path, vec![b'x'; length]).unwrap();
        assert_eq!(read(&path).unwrap().len(), length);
        std::fs::write(&path, vec![b'x'; length + 1]).unwrap();
        let error = read(&path).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((error.kind(), error.context("file")), (ErrorKind::InvalidConfig, path.to_str()));
        assert!(error.message().contains("4 MiB"), "{error}");
    }

    #[test]
    fn a_secret_is_text_without_the_end_of_its_line() {
        let path = std::env::temp_dir().join(format!("anyqueue-secret-{}", std::process::id()));
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            secret(&path)
        };
        assert_eq!(of(b" hunter2\r\n").unwrap().expose(), " hunter2");
        for (bytes, why) in [(&b" \n"[..], "empty"), (b"hunter\0", "not text"), (b"hunter\xff", "not text")] {
            let error = of(bytes).unwrap_err();
            assert!(error.message().contains(why) && !format!("{error:?}").contains("hunter"), "{error:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
