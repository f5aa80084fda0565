//! tmp
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let stem = a[1].parse().unwrap();
    let isa = a.get(5).map(|n| kernels::Isa::named(n).unwrap()).unwrap_or(kernels::Isa::detect());
    let r = hfl::bench::run(hfl::bench::Options { stem, precision: hfl::job::Precision::Fp32, batch: a[2].parse().unwrap(), threads: a[3].parse().unwrap(), steps: a[4].parse().unwrap(), isa }).unwrap();
    println!("{}", serde_json::to_string(&r).unwrap());
}
