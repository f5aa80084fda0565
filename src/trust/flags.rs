//! `attested!`: the flags of a command that talks to attested peers, and the trust that they state.

/// Makes a command's arguments of its own flags and these: argh has no groups of flags.
macro_rules! attested {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($fields:tt)* }) => {
        $(#[$attribute])*
        $visibility struct $name {
            $($fields)*
            /// source of evidence: auto, tdx, coco, azure, sim, or none (an owner's secret service or node) [auto]
            #[argh(option, default = "crate::trust::Attestation::Auto")]
            pub(super) attestation: crate::trust::Attestation,
            /// collateral: file, https://PCCS:8081[#SHA256], folder to keep it in; as often as needed
            #[argh(option)]
            pub(super) collateral: Vec<crate::trust::Source>,
            /// policy file that peers must satisfy; tdx needs one [sim: the same image as this one]
            #[argh(option)]
            pub(super) policy: Option<std::path::PathBuf>,
            /// owner's key to show (hfl identity create)
            #[argh(option)]
            pub(super) identity: Option<std::path::PathBuf>,
            /// what the simulated TD runs, for tests of who is refused
            #[argh(option, default = "crate::trust::TrustOptions::SIM_IMAGE.into()", hidden_help)]
            sim_image: String,
        }

        impl $name {
            pub(super) fn trust(&self) -> crate::trust::TrustOptions {
                crate::trust::TrustOptions {
                    attestation: self.attestation,
                    collateral: self.collateral.clone(),
                    policy: self.policy.clone(),
                    identity: self.identity.clone(),
                    sim_image: self.sim_image.clone(),
                }
            }
        }
    };
}
pub(crate) use attested;
