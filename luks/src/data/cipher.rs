//! AES-XTS (IEEE 1619) over sectors numbered as dm-crypt's `plain64`, batched for the wide AES units.

use aes::cipher::consts::U16;
use aes::cipher::{
    Array, Block, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt,
    BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit,
};
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
            Keys::Aes128(keys) => {
                self.run(data, offset, &keys[1], |b| keys[0].encrypt_with_backend(b))
            }
            Keys::Aes256(keys) => {
                self.run(data, offset, &keys[1], |b| keys[0].encrypt_with_backend(b))
            }
        }
    }

    /// Decrypts whole sectors in place.
    pub fn decrypt(&self, data: &mut [u8], offset: u64) {
        match &self.keys {
            Keys::Aes128(keys) => {
                self.run(data, offset, &keys[1], |b| keys[0].decrypt_with_backend(b))
            }
            Keys::Aes256(keys) => {
                self.run(data, offset, &keys[1], |b| keys[0].decrypt_with_backend(b))
            }
        }
    }

    /// Works in batches of several small sectors or one large one.
    fn run<T: BlockCipherEncrypt<BlockSize = U16>>(
        &self,
        data: &mut [u8],
        offset: u64,
        tweak_key: &T,
        cipher: impl Fn(Batch),
    ) {
        assert!(data.len().is_multiple_of(self.sector), "part of a sector");
        assert!(offset.is_multiple_of(self.sector as u64), "from within a sector");
        let mut tweaks = [[0; 2]; BATCH];
        let mut offset = offset;
        for data in data.chunks_mut(BATCH * BLOCK) {
            let mut first = [Array::from([0; BLOCK]); BATCH * BLOCK / SECTOR as usize];
            let first = &mut first[..data.len() / self.sector];
            for (index, start) in first.iter_mut().enumerate() {
                let number = (offset + (index * self.sector) as u64) / SECTOR;
                start[..8].copy_from_slice(&number.to_le_bytes());
            }
            tweak_key.encrypt_blocks(first);
            offset += data.len() as u64;
            let (blocks, _) = data.as_chunks_mut::<BLOCK>();
            cipher(Batch { blocks, first, per_sector: self.sector / BLOCK, tweaks: &mut tweaks });
        }
    }
}

/// A tweak in two halves, the low one first.
type Tweak = [u64; 2];

/// Whole sectors, and the encrypted sector numbers that their tweaks begin with. As the closure of the
/// cipher its code is compiled for the CPU's widest instructions, like the cipher's own.
struct Batch<'a> {
    blocks: &'a mut [[u8; BLOCK]],
    first: &'a [Array<u8, U16>],
    per_sector: usize,
    tweaks: &'a mut [Tweak; BATCH],
}

impl BlockSizeUser for Batch<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Batch<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(mut self, backend: &B) {
        self.fill();
        self.apply();
        let blocks: &mut [Block<B>] = Array::cast_slice_from_core_mut(self.blocks);
        let (chunks, tail) = Array::slice_as_chunks_mut(blocks);
        chunks.iter_mut().for_each(|chunk| backend.encrypt_par_blocks_inplace(chunk));
        backend.encrypt_tail_blocks_inplace(tail);
        self.apply();
    }
}

impl BlockCipherDecClosure for Batch<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(mut self, backend: &B) {
        self.fill();
        self.apply();
        let blocks: &mut [Block<B>] = Array::cast_slice_from_core_mut(self.blocks);
        let (chunks, tail) = Array::slice_as_chunks_mut(blocks);
        chunks.iter_mut().for_each(|chunk| backend.decrypt_par_blocks_inplace(chunk));
        backend.decrypt_tail_blocks_inplace(tail);
        self.apply();
    }
}

/// Chains of tweaks that advance side by side: each step waits for the one before.
const CHAINS: usize = 8;

impl Batch<'_> {
    /// The first tweak of each sector and its multiples by x, x^2, ... in GF(2^128) modulo
    /// x^128 + x^7 + x^2 + x + 1.
    #[inline(always)]
    fn fill(&mut self) {
        for (first, tweaks) in self.first.iter().zip(self.tweaks.chunks_mut(self.per_sector)) {
            let first = u128::from_le_bytes((*first).into());
            let (mut low, mut high) = ([first as u64; CHAINS], [(first >> 64) as u64; CHAINS]);
            for index in 1..CHAINS {
                [low[index], high[index]] = times_x([low[index - 1], high[index - 1]]);
            }
            for group in tweaks.chunks_exact_mut(CHAINS) {
                for index in 0..CHAINS {
                    group[index] = [low[index], high[index]];
                }
                // All chains times x^8.
                for index in 0..CHAINS {
                    let carry = high[index] >> 56;
                    high[index] = high[index] << 8 | low[index] >> 56;
                    low[index] = low[index] << 8 ^ carry ^ carry << 1 ^ carry << 2 ^ carry << 7;
                }
            }
        }
    }

    #[inline(always)]
    fn apply(&mut self) {
        for (block, [low, high]) in self.blocks.iter_mut().zip(self.tweaks.iter()) {
            let (halves, _) = block.as_chunks_mut::<8>();
            halves[0] = (u64::from_le_bytes(halves[0]) ^ low).to_le_bytes();
            halves[1] = (u64::from_le_bytes(halves[1]) ^ high).to_le_bytes();
        }
    }
}

#[inline(always)]
fn times_x([low, high]: Tweak) -> Tweak {
    [(low << 1) ^ ((high >> 63) * 0x87), high << 1 | low >> 63]
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
