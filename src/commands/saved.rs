//! `saved_model!`: the flags of a command that reads a saved model, and the place that they name.

/// Makes a command's arguments of these flags and its own: argh has no groups of flags.
macro_rules! saved_model {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($fields:tt)* }) => {
        $(#[$attribute])*
        $visibility struct $name {
            /// directory of the model [model]
            #[argh(option, default = "std::path::PathBuf::from(\"model\")")]
            model_dir: std::path::PathBuf,
            /// encrypted volume with the model, instead of --model-dir
            #[argh(option)]
            volume: Option<std::path::PathBuf>,
            /// file whose bytes are the volume's passphrase, - for stdin
            #[argh(option)]
            key_file: Option<std::path::PathBuf>,
            /// open file descriptor to read the volume's passphrase from
            #[argh(option)]
            key_fd: Option<u32>,
            $($fields)*
        }

        impl $name {
            fn place(&self, min_step: u64) -> crate::training::store::Place {
                crate::training::store::Place {
                    model_dir: self.model_dir.clone(),
                    volume: self.volume.clone(),
                    create: None,
                    key: crate::trust::passphrase::KeySource {
                        file: self.key_file.clone(),
                        descriptor: self.key_fd,
                    },
                    min_step,
                }
            }
        }
    };
}
pub(crate) use saved_model;
