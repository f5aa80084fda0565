//! AES-XTS (IEEE 1619) over sectors numbered as dm-crypt's `plain64`, batched for the wide AES units.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256};

/// Bytes of an AES block.
const BLOCK: usize = 16;
/// Blocks that are worked on at once: 4 KiB, so that tweaks and data stay in the first cache.
const BATCH: usize = 256;
/// Sectors count in this unit, whatever the encryption sector is.
const SECTOR: u64 = 512;

/// A key schedule for data and one for tweaks.
pub struct Xts {
    keys: Keys,
    /// Bytes of an encryption sector.
    sector: usize,
}

enum Keys {
    Aes128(Box<[Aes128; 2]>),
    Aes256(Box<[Aes256; 2]>),
}

impl Xts {
    /// A cipher over sectors of `sector` bytes, 512 or 4096; the key has 32 or 64 bytes.
    ///
    /// # Panics
    /// With a key or a sector of another length.
    pub fn new(key: &[u8], sector: u32) -> Self {
        assert!([512, 4096].contains(&sector), "a sector of {sector} bytes");
        let (data, tweak) = key.split_at(key.len() / 2);
        let schedule = "half of a key";
        let keys = match key.len() {
            32 => Keys::Aes128(Box::new(
                [data, tweak].map(|half| Aes128::new_from_slice(half).expect(schedule)),
            )),
            64 => Keys::Aes256(Box::new(
                [data, tweak].map(|half| Aes256::new_from_slice(half).expect(schedule)),
            )),
            len => panic!("a key of {len} bytes"),
        };
        Self { keys, sector: sector as usize }
    }

    /// Bytes of an encryption sector.
    pub fn sector(&self) -> usize {
        self.sector
    }

    /// Encrypts whole sectors in place; `offset` is that of the first byte in the segment.
    pub fn encrypt(&self, data: &mut [u8], offset: u64) {
        match &self.keys {
            Keys::Aes128(keys) => self.run(data, offset, &keys[1], |b| keys[0].encrypt_blocks(b)),
            Keys::Aes256(keys) => self.run(data, offset, &keys[1], |b| keys[0].encrypt_blocks(b)),
        }
    }

    /// Decrypts whole sectors in place.
    pub fn decrypt(&self, data: &mut [u8], offset: u64) {
        match &self.keys {
            Keys::Aes128(keys) => self.run(data, offset, &keys[1], |b| keys[0].decrypt_blocks(b)),
            Keys::Aes256(keys) => self.run(data, offset, &keys[1], |b| keys[0].decrypt_blocks(b)),
        }
    }

    /// Tweak, cipher, tweak, in batches of several small sectors or one large one.
    fn run<T: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16>>(
        &self,
        data: &mut [u8],
        offset: u64,
        tweak_key: &T,
        cipher: impl Fn(&mut [Array<u8, aes::cipher::consts::U16>]),
    ) {
        assert!(data.len().is_multiple_of(self.sector), "part of a sector");
        assert!(offset.is_multiple_of(self.sector as u64), "from within a sector");
        let per_sector = self.sector / BLOCK;
        let mut tweaks = [0u128; BATCH];
        let mut offset = offset;
        for batch in data.chunks_mut(BATCH * BLOCK) {
            let mut first = [Array::from([0; BLOCK]); BATCH * BLOCK / SECTOR as usize];
            let sectors = &mut first[..batch.len() / self.sector];
            for (index, start) in sectors.iter_mut().enumerate() {
                let number = (offset + (index * self.sector) as u64) / SECTOR;
                start[..8].copy_from_slice(&number.to_le_bytes());
            }
            tweak_key.encrypt_blocks(sectors);
            for (start, tweaks) in sectors.iter().zip(tweaks.chunks_mut(per_sector)) {
                let mut tweak = u128::from_le_bytes((*start).into());
                for target in tweaks {
                    *target = tweak;
                    tweak = double(tweak);
                }
            }
            let (blocks, _) = batch.as_chunks_mut::<BLOCK>();
            apply(blocks, &tweaks);
            cipher(Array::cast_slice_from_core_mut(blocks));
            apply(blocks, &tweaks);
            offset += batch.len() as u64;
        }
    }
}

/// Multiplies by x in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1.
#[inline(always)]
fn double(tweak: u128) -> u128 {
    let carry = ((tweak as i128) >> 127) as u128;
    (tweak << 1) ^ (carry & 0x87)
}

#[inline(always)]
fn apply(blocks: &mut [[u8; BLOCK]], tweaks: &[u128; BATCH]) {
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IEEE 1619-2007, vector 10 (256-bit keys, data unit 0xff): its first eight bytes.
    #[test]
    fn vector_of_the_standard() {
        let key = [
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592",
        ];
        let key = key.concat();
        let byte = |at: usize| u8::from_str_radix(&key[at..at + 2], 16).expect("hexadecimal");
        let key: Vec<u8> = (0..key.len()).step_by(2).map(byte).collect();
        let xts = Xts::new(&key, 512);
        let plain: Vec<u8> = (0..512).map(|at| at as u8).collect();
        let mut data = plain.clone();
        xts.encrypt(&mut data, 0xff * 512);
        assert_eq!(data[..8], [0x1c, 0x3b, 0x3a, 0x10, 0x2f, 0x77, 0x03, 0x86]);
        xts.decrypt(&mut data, 0xff * 512);
        assert_eq!(data, plain);
    }

    #[test]
    fn batches_do_not_change_what_a_sector_becomes() {
        for (key_len, sector) in [(32, 512), (64, 512), (32, 4096), (64, 4096)] {
            let xts = Xts::new(&vec![5; key_len], sector);
            let plain: Vec<u8> = (0..9 * 4096).map(|at| (at / 7) as u8).collect();
            let mut whole = plain.clone();
            xts.encrypt(&mut whole, 4096);
            let mut parts = plain.clone();
            for (index, part) in parts.chunks_mut(sector as usize).enumerate() {
                xts.encrypt(part, 4096 + index as u64 * u64::from(sector));
            }
            assert_eq!(whole, parts);
            assert_ne!(whole, plain);
            xts.decrypt(&mut whole, 4096);
            assert_eq!(whole, plain);
        }
    }
}
