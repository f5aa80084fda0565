//! Anti-forensic splitter: a key spread over 4000 stripes, all needed (LUKS1 specification, section 2.4).

use ring::digest;

use crate::Error;
use crate::keys::hash::Hash;
use crate::keys::secret::Secret;
use crate::random::random;

/// Stripes of the splitter; LUKS2 knows no other number.
pub(crate) const STRIPES: usize = 4000;

/// The key in `material`, which holds `STRIPES` times its length.
pub(crate) fn merge(hash: Hash, material: &[u8], key_len: usize) -> Secret {
    let mut key = diffused(hash, &material[..(STRIPES - 1) * key_len], key_len);
    xor(&mut key, &material[(STRIPES - 1) * key_len..][..key_len]);
    key
}

/// Material that merges to `key`.
///
/// # Errors
/// When the system has no random numbers.
pub(crate) fn split(hash: Hash, key: &[u8]) -> Result<Secret, Error> {
    let mut material = Secret::zeroed(STRIPES * key.len());
    let (stripes, last) = material.split_at_mut((STRIPES - 1) * key.len());
    random(stripes)?;
    last.copy_from_slice(key);
    xor(last, &diffused(hash, stripes, key.len()));
    Ok(material)
}

fn diffused(hash: Hash, stripes: &[u8], key_len: usize) -> Secret {
    let mut buffer = Secret::zeroed(key_len);
    for stripe in stripes.chunks_exact(key_len) {
        xor(&mut buffer, stripe);
        diffuse(hash, &mut buffer);
    }
    buffer
}

fn diffuse(hash: Hash, buffer: &mut [u8]) {
    let algorithm = match hash {
        Hash::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha256 => &digest::SHA256,
        Hash::Sha512 => &digest::SHA512,
    };
    for (index, block) in buffer.chunks_mut(hash.len()).enumerate() {
        let mut context = digest::Context::new(algorithm);
        context.update(&(index as u32).to_be_bytes());
        context.update(block);
        block.copy_from_slice(&context.finish().as_ref()[..block.len()]);
    }
}

fn xor(target: &mut [u8], source: &[u8]) {
    target.iter_mut().zip(source).for_each(|(a, b)| *a ^= b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stripe_is_needed() {
        for (hash, len) in [(Hash::Sha256, 64), (Hash::Sha512, 96), (Hash::Sha1, 32)] {
            let key: Vec<u8> = (0..len as u8).collect();
            let mut material = split(hash, &key).expect("random numbers");
            assert_eq!(*merge(hash, &material, len), *key);
            for at in [0, 1999 * len + 3, STRIPES * len - 1] {
                material[at] ^= 1;
                assert_ne!(*merge(hash, &material, len), *key);
                material[at] ^= 1;
            }
        }
    }
}
