//! The disk: LUKS2 headers and dm-crypt devices.
