//! Encrypted sectors: AES-XTS in place, for volumes without tags.

use super::cipher::Xts;
use crate::Error;
use crate::disk::{Disk, check_range};

/// Bytes that are encrypted at once.
const CHUNK: usize = 1 << 20;

/// A segment under AES-XTS.
pub struct Encrypted<D> {
    disk: D,
    xts: Xts,
}

impl<D: Disk> Encrypted<D> {
    /// A segment that is the whole of `disk`; the key has 32 or 64 bytes.
    ///
    /// # Panics
    /// With a key or a sector of another length.
    pub fn new(disk: D, key: &[u8], sector: u32) -> Self {
        Self { disk, xts: Xts::new(key, sector) }
    }
}

impl<D: Disk> Disk for Encrypted<D> {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.len(), target.len(), offset)?;
        let sector = self.xts.sector() as u64;
        let inside = (offset % sector) as usize;
        if inside == 0 && (target.len() as u64).is_multiple_of(sector) {
            self.disk.read_at(target, offset)?;
            self.xts.decrypt(target, offset);
            return Ok(());
        }
        let first = offset - inside as u64;
        let mut sectors = vec![0; (inside + target.len()).next_multiple_of(sector as usize)];
        self.disk.read_at(&mut sectors, first)?;
        self.xts.decrypt(&mut sectors, first);
        target.copy_from_slice(&sectors[inside..][..target.len()]);
        Ok(())
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        check_range(self.len(), source.len(), offset)?;
        let mut buffer = vec![0; source.len().min(CHUNK)];
        for (index, chunk) in source.chunks(CHUNK).enumerate() {
            let at = offset + (index * CHUNK) as u64;
            let buffer = &mut buffer[..chunk.len()];
            buffer.copy_from_slice(chunk);
            self.xts.encrypt(buffer, at);
            self.disk.write_at(buffer, at)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.disk.flush()
    }
}
