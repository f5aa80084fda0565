//! `cargo bench -p luks`: AES-XTS against openssl, creating and opening against cryptsetup; medians of
//! alternating runs on one core.

mod timing;

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use luks::cipher::Xts;
use luks::disk::Disk;
use luks::{Hash, KdfCost, Options, Passphrase, Source, create};

use timing::{median, milliseconds};

const ROUNDS: usize = 7;
const BUFFER: usize = 16 << 10;
const SECOND: Duration = Duration::from_millis(700);

fn main() {
    let xts = Xts::new(&(0..64).collect::<Vec<u8>>(), 4096);
    let small = Xts::new(&(0..64).collect::<Vec<u8>>(), 512);
    println!("AES-256-XTS, one core, {} KiB in place, MB/s (median of {ROUNDS})", BUFFER >> 10);
    let mut rows: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        rows[0].push(openssl());
        rows[1].push(rate(|buffer| xts.encrypt(buffer, 0)));
        rows[2].push(rate(|buffer| xts.decrypt(buffer, 0)));
        rows[3].push(rate(|buffer| small.decrypt(buffer, 0)));
    }
    let [peer, rest @ ..] = rows.map(median);
    println!("  openssl speed -evp aes-256-xts  {peer:8.0}");
    for (name, value) in ["encrypt, 4096", "decrypt, 4096", "decrypt, 512"].into_iter().zip(rest) {
        println!("  luks, {name:<24}  {value:8.0}  {:.2} of openssl", value / peer);
    }
    let folder = std::env::temp_dir().join(format!("hfl-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("create");
    std::fs::write(folder.join("key"), b"a key").expect("write");
    println!("create and open, ms, hfl / cryptsetup (median of {ROUNDS})");
    let argon2 = |hybrid| KdfCost::Argon2 { hybrid, time: 4, memory_kib: 65536, lanes: 1 };
    let pbkdf2 = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 600_000 };
    for cost in [argon2(true), argon2(false), pbkdf2] {
        compare(&folder, cost);
    }
    std::fs::remove_dir_all(&folder).expect("remove");
}

/// Megabytes a second of `run` over a buffer.
fn rate(run: impl Fn(&mut [u8])) -> f64 {
    let mut buffer = vec![7; BUFFER];
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < SECOND {
        for _ in 0..64 {
            run(black_box(&mut buffer));
            bytes += BUFFER;
        }
    }
    bytes as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn openssl() -> f64 {
    let output = Command::new("openssl")
        .args([
            "speed",
            "-mr",
            "-seconds",
            "1",
            "-bytes",
            &BUFFER.to_string(),
            "-evp",
            "aes-256-xts",
        ])
        .stderr(Stdio::null())
        .output()
        .expect("openssl");
    let text = String::from_utf8_lossy(&output.stdout);
    // +F:22:AES-256-XTS:bytes a second
    let line = text.lines().find(|line| line.starts_with("+F")).expect("a figure");
    line.rsplit(':').next().and_then(|field| field.parse::<f64>().ok()).expect("a number") / 1e6
}

fn compare(folder: &Path, cost: KdfCost) {
    let (ours, theirs, key) = (folder.join("ours"), folder.join("theirs"), folder.join("key"));
    let passphrase = || Passphrase::from_bytes(b"a key");
    let words = match cost {
        KdfCost::Pbkdf2 { iterations, .. } => {
            format!("--pbkdf pbkdf2 --hash sha256 --pbkdf-force-iterations {iterations}")
        }
        KdfCost::Argon2 { time, memory_kib, lanes, .. } => format!(
            "--pbkdf {} --pbkdf-force-iterations {time} --pbkdf-memory {memory_kib} --pbkdf-parallel {lanes}",
            cost.name()
        ),
    };
    let cryptsetup = |words: &str, paths: &[&Path]| {
        let status = Command::new("/sbin/cryptsetup")
            .args(words.split(' '))
            .args(paths)
            .stdin(Stdio::null())
            .status();
        assert!(status.expect("cryptsetup").success(), "{words}");
    };
    let mut rows: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        rows[0].push(milliseconds(|| {
            let options = Options { cost, ..Options::new(64 << 20) };
            drop(create(&ours, None, &options, &[passphrase()], true).expect("create"));
        }));
        std::fs::File::create(&theirs).and_then(|file| file.set_len(64 << 20)).expect("a file");
        rows[1].push(milliseconds(|| {
            cryptsetup(
                &format!("luksFormat -q -s 512 --sector-size 4096 {words}"),
                &[&theirs, &key],
            );
        }));
        rows[2].push(milliseconds(|| {
            let volume = Source::new(&ours).open(&passphrase(), false).expect("open");
            assert!(!volume.is_empty());
        }));
        rows[3].push(milliseconds(|| {
            cryptsetup("open --test-passphrase --key-file", &[&key, &theirs]);
        }));
    }
    let [create, format, open, test] = rows.map(median);
    println!(
        "  {:<9} create {create:5.0} / {format:5.0}   open {open:5.0} / {test:5.0}",
        cost.name()
    );
}
