//! The fuzz targets' seeds through the ordinary test runner; the targets' own checks are the test.

#[test]
fn seeds_are_there_for_every_target() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");
    let mut targets: Vec<String> = std::fs::read_dir(format!("{root}/targets"))
        .expect("targets")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().replace(".rs", ""))
        .collect();
    targets.sort();
    let expected = [
        "answers",
        "certificates",
        "checkpoint",
        "cifar",
        "collateral",
        "evidence",
        "frame",
        "ledger",
        "luks_binary",
        "luks_ext4",
        "luks_header",
        "luks_integrity",
        "luks_journal",
        "luks_json",
        "message",
        "narrow",
        "passport",
        "policy",
        "quote",
        "receipts",
        "session",
    ];
    assert_eq!(targets, expected);
    for target in targets {
        let seeds = std::fs::read_dir(format!("{root}/seeds/{target}")).expect("seeds");
        assert!(seeds.count() > 0, "{target} has no seed");
    }
}
