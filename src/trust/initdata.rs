//! The digest of an initdata document: what kata gives a TD as MRCONFIGID.

use base64ct::{Base64, Encoding};
use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

use super::gzip::gunzip;

/// Largest document, unpacked, and largest file in which it comes: gzip may claim a thousand times its size.
const DOCUMENT_LEN_MAX: usize = 1 << 20;
/// Begins a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The MRCONFIGID of a pod with this document, which may also be as annotations hold it: gzip, and base64.
///
/// # Errors
/// When it is no document of initdata.
pub(crate) fn config_id(file: &[u8]) -> Result<[u8; 48], String> {
    if file.len() > DOCUMENT_LEN_MAX {
        return Err("more than 1 MiB".into());
    }
    let packed = unwrapped(file);
    let file = packed.as_deref().unwrap_or(file);
    match file.starts_with(&GZIP) {
        true => {
            digest_of(&gunzip(file, DOCUMENT_LEN_MAX).ok_or("damaged gzip, or more than 1 MiB")?)
        }
        false => digest_of(file),
    }
}

/// What base64 stands for, if it is that: a document has characters that base64 has not.
fn unwrapped(file: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(file).ok()?;
    let digits: String = text.split_ascii_whitespace().collect();
    Base64::decode_vec(&digits).ok().filter(|bytes| !bytes.is_empty())
}

/// The digest by the algorithm that the document names, cut or filled with zeros to the length of the register.
pub(crate) fn digest_of(document: &[u8]) -> Result<[u8; 48], String> {
    let text = std::str::from_utf8(document).map_err(|_| "no document of initdata: no text")?;
    // Keys of the document itself come before its first table.
    let head = text.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    let values = head.filter_map(|line| line.strip_prefix("algorithm")?.trim().strip_prefix('='));
    let [name] = values.collect::<Vec<_>>()[..] else {
        return Err("no document of initdata: it names no algorithm".into());
    };
    let name = name.split('#').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
    let algorithm: &Algorithm = match name {
        "sha256" => &SHA256,
        "sha384" => &SHA384,
        "sha512" => &SHA512,
        _ => return Err("its algorithm: expected sha256, sha384 or sha512".into()),
    };
    let mut register = [0; 48];
    for (byte, value) in register.iter_mut().zip(digest(algorithm, document).as_ref()) {
        *byte = *value;
    }
    Ok(register)
}

#[cfg(test)]
mod tests {
    use protocol::hex;

    use super::*;

    /// By Python's zlib: with codes of its own (level 9), and with the fixed ones.
    const DYNAMIC: &str = "H4sIAAAAAAACA3WOwYrCMBCG73mKkEtvsct6KAVPRc+LexSRMZ22oWkmm0wXfXtTxWURPMxh/v/jm/nFmCx5uZGq1B\
             +6VAJcT9HyMC1ZGuCzWishDi0wHIUC0EyTU7ksikIcmEb0J0O+s306vux6POdsjm5RDcyhXq1ypPECU3BYV2WVDy4e\
             FchZc9URe3q6A5gRepR5PJ8egGixg9mxbCICY0OewXqMe/yZMbGsN7IDl/CP217QfEUymNJbZo/QfnMWTm+RhsJ1Zx\
             3+AzjOeP/9BsLeWHpDAQAA";
    const FIXED: &str = "H4sIAAAAAAACAytLLSrOzM9TsFVQMtAz1DNQ4krMSc8vyizJyAWJFWckGluYKHFxRackliTGciklJuqV5OfmKAEl1d\
             XVuaJL8rNT8+KT8/PSMtOLY9H4etlJQLHSohyQURklJQVW+vpAIb3UisTcgpxUKwsDC6CFIHOUCvJzMpMr9YpS0/Nh\
             ZhckJmcnpqcqAHFeSTxEAVdKalpiaU6JgnNRamJJqnN+XkliZl5qUVBqYWlqcYmCla1CWmJOcSpcnWtFanJAUX5yan\
             ExTjVBqYkpwSVAA3NxKnHOL6h0y8xJRVJQUlSaCnY7AMLeWHpDAQAA";
    /// By sha384sum.
    const DIGEST: &str = "eae2f82a093fbedb24821a7432a2791a3b3563de63403f805c0fd62e4e2168d78a965a69fc86ae59ac6615f1aa\
             5b7d10";

    #[test]
    fn every_form_of_a_document_has_its_digest() {
        let packed = Base64::decode_vec(DYNAMIC).expect("base64");
        let document = gunzip(&packed, DOCUMENT_LEN_MAX).expect("gzip");
        let own = super::super::gzip::gzip(&document);
        let lines = DYNAMIC.as_bytes().chunks(76).collect::<Vec<_>>().join(&b"\n"[..]);
        let forms = [
            document.clone(),
            packed.clone(),
            own.clone(),
            lines,
            FIXED.into(),
            Base64::encode_string(&own).into_bytes(),
            Base64::encode_string(&document).into_bytes(),
        ];
        for form in forms {
            assert_eq!(hex(&config_id(&form).expect("a document")), DIGEST);
        }
        assert_eq!(gunzip(&packed, document.len() - 1), None, "more than is allowed");
        for at in 0..packed.len() {
            assert_eq!(gunzip(&packed[..at], DOCUMENT_LEN_MAX), None, "cut at {at}");
            let mut changed = packed.clone();
            changed[at] ^= 1;
            // Time, flags and system of a gzip file say nothing about what it holds.
            let same = gunzip(&changed, DOCUMENT_LEN_MAX).is_none_or(|out| out == document);
            assert!(same, "byte {at}");
        }
    }

    #[test]
    fn algorithms_fill_the_register_and_others_are_refused() {
        let document = |name: &str| format!("algorithm = \"{name}\"\n[data]\nalgorithm = \"x\"\n");
        let short = config_id(document("sha256").as_bytes()).expect("a document");
        assert!(short[..32] != [0; 32] && short[32..] == [0; 16]);
        assert!(config_id(document("sha512").as_bytes()).is_ok());
        for wrong in [document("md5"), "version = 1".into(), String::new()] {
            assert!(config_id(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
