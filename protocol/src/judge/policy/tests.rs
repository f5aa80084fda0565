//! Policies: what they accept, what they name, what is told about them.

use super::*;
use crate::hex::Hex;
use crate::services::pccs::tests::real_td;
use crate::{Quote, SimPlatform};

const NOW: u64 = 1_800_000_000;

fn report() -> TdReport {
    *SimPlatform::new(1_800_000_000).report()
}

/// A file does not make anybody a secret service unless it says so.
fn without_roles(mut policy: Policy) -> Policy {
    policy.accepted.iter_mut().for_each(|set| set.roles = None);
    policy
}

#[test]
fn a_template_accepts_its_td_and_no_other() {
    let own = report();
    let text = Policy::template(&own, None);
    let policy = Policy::parse(text.as_bytes()).expect("our own file");
    assert_eq!(policy, without_roles(Policy::same_as(&own)));
    policy.check(&own, None, Some(Role::Worker(0)), NOW).expect("the same TD");
    for index in 0..4 {
        let mut other = own;
        other.rt_mr[index][47] ^= 1;
        let refused = policy.check(&other, None, None, NOW);
        assert!(matches!(refused, Err(Rejection::Measurement(_))), "{index}");
    }
    let mut other = own;
    other.mr_owner[0] ^= 1;
    policy.check(&other, None, None, NOW).expect("switched off");
    other.td_attributes[0] |= 1;
    assert!(matches!(policy.check(&other, None, None, NOW), Err(Rejection::Rules(_))));
}

#[test]
fn the_configuration_counts_where_there_is_one_and_each_register_that_differs_is_named() {
    let mut pod = report();
    pod.mr_config_id = [7; 48];
    let text = Policy::template(&pod, None);
    let policy = Policy::parse(text.as_bytes()).expect("our own file");
    assert_eq!(policy, without_roles(Policy::same_as(&pod)));
    assert!(!policy.leaves_config_open());
    policy.check(&pod, None, None, NOW).expect("the same pod");
    // The same guest with another container; and another kernel in it too.
    let mut other = pod;
    other.mr_config_id = [8; 48];
    let why = policy.check(&other, None, None, NOW).expect_err("another document").to_string();
    let named = format!("MRCONFIGID is {}, expected {}", Hex(&[8; 48]), Hex(&[7; 48]));
    assert!(why.contains(&named) && !why.contains("MRTD"), "{why}");
    other.rt_mr[2][0] ^= 1;
    let why = policy.check(&other, None, None, NOW).expect_err("another kernel").to_string();
    assert!(why.contains("MRCONFIGID") && why.contains("RTMR2") && !why.contains("RTMR1"));
    let plain = Policy::parse(Policy::template(&report(), None).as_bytes()).expect("a file");
    assert!(plain.leaves_config_open(), "it is zero there");
}

#[test]
fn policies_that_any_guest_could_meet_are_told() {
    let all = ["mr_seam", "mrsigner_seam", "mr_td", "mr_config_id", "rt_mr1", "rt_mr2", "rt_mr3"];
    let policy = |on: &[&str], pcrs: &[u8]| {
        let zeros = "00".repeat(48);
        let mut text: Vec<String> =
            on.iter().map(|name| format!("\"verify_{}\":\"on\"", name)).collect();
        let values: Vec<String> = on.iter().map(|name| format!("\"{name}\":\"{zeros}\"")).collect();
        let pcrs: Vec<String> =
            pcrs.iter().map(|pcr| format!("\"{pcr}\":\"{}\"", "00".repeat(32))).collect();
        let set = format!("{{{},\"pcrs\":{{{}}}}}", values.join(","), pcrs.join(","));
        text.push(format!("\"tdx_mrs\":[{set}]"));
        Policy::parse(format!("{{{}}}", text.join(",")).as_bytes()).expect("a policy")
    };
    for (pcrs, is_open) in [(&[][..], false), (&[11], true), (&[8, 11], false)] {
        assert_eq!(policy(&all, pcrs).leaves_config_open(), is_open, "{pcrs:?}");
    }
    for weak in [
        &["rt_mr3"][..],
        &["mrsigner_seam"],
        &["mr_td"],
        &["mr_config_id"],
        &["mr_td", "rt_mr3", "mr_config_id"],
        &["mr_td", "rt_mr1"],
        &["mr_seam", "rt_mr1", "rt_mr2", "rt_mr3", "mr_config_id"],
    ] {
        assert!(policy(weak, &[]).weakness().is_some(), "{weak:?}");
    }
    assert!(Policy::default().weakness().is_some());
    assert!(policy(&["mr_td"], &[0, 7]).weakness().is_some());
    for (strong, pcrs) in [
        (&all[..], &[][..]),
        (&["mr_td", "rt_mr1", "rt_mr2"], &[]),
        (&["mr_td"], &[4, 9]),
        (&["mr_td"], &[11]),
    ] {
        assert_eq!(policy(strong, pcrs).weakness(), None, "{strong:?} {pcrs:?}");
    }
}

#[test]
fn one_of_several_sets_must_match_and_may_take_its_roles_only() {
    let (a, mut b) = (report(), report());
    b.mr_td[3] ^= 8;
    let text = format!(
        r#"{{"verify_mr_td":"on","tdx_mrs":[{{"mr_td":"{}","roles":["ps"]}},
            {{"mr_td":"{}","roles":["worker"]}}]}}"#,
        Hex(&a.mr_td),
        Hex(&b.mr_td)
    );
    let policy = Policy::parse(text.as_bytes()).expect("valid");
    policy.check(&a, None, Some(Role::ParameterServer(0)), NOW).expect("its role");
    policy.check(&b, None, Some(Role::Worker(1)), NOW).expect("its role");
    policy.check(&a, None, None, NOW).expect("no role yet");
    let swapped = policy.check(&a, None, Some(Role::Worker(0)), NOW);
    assert_eq!(swapped, Err(Rejection::RoleOfMeasurement(Role::Worker(0))));
}

#[test]
fn what_is_not_understood_is_an_error() {
    assert!(Policy::parse(b"{}").expect("everything off").accepts_anything());
    for text in [
        "",
        "[]",
        r#"{"verify_mrtd":"on"}"#,
        r#"{"verify_mr_td":true}"#,
        r#"{"verify_mr_td":"on"}"#,
        r#"{"verify_mr_td":"on","tdx_mrs":[{}]}"#,
        r#"{"verify_mr_td":"on","tdx_mrs":[{"mr_td":"00"}]}"#,
        r#"{"tdx_mrs":[{"mr_td":"00"}]}"#,
        r#"{"tcb_statuses":["Fine"]}"#,
        r#"{"tcb_date_min":"yesterday"}"#,
        r#"{"platforms":["12"]}"#,
        r#"{"allow_debug":true,"allow_debug":false}"#,
    ] {
        assert!(Policy::parse(text.as_bytes()).is_err(), "{text}");
    }
}

/// The template's policy with more keys in the file, and more in its set.
fn with(more: &str, in_set: &str) -> Result<Policy, PolicyError> {
    let text = Policy::template(&report(), None);
    let text = text.replacen("\"mr_seam\"", &format!("{in_set} \"mr_seam\""), 1);
    Policy::parse(text.replacen('{', &format!("{{ {more}"), 1).as_bytes())
}

#[test]
fn nobody_is_a_secret_service_by_measurement_alone() {
    let own = report();
    let service = Some(Role::SecretService);
    let refused = Err(Rejection::RoleOfMeasurement(Role::SecretService));
    let check = |policy: &Policy| policy.check(&own, None, service, NOW);
    assert_eq!(check(&with("", "").expect("valid")), refused);
    assert_eq!(check(&Policy::default()), refused);
    assert_eq!(check(&with("", r#""roles":["ps","node"],"#).expect("valid")), refused);
    check(&with("", r#""roles":["secret"],"#).expect("valid")).expect("its owner says so");
    let key = |digit: &str| digit.repeat(64);
    let keyed = with(&format!(r#""service_keys":["{}"],"#, key("a")), "").expect("valid");
    check(&keyed).expect("known by its key");
    assert_eq!(keyed.check_key(Role::SecretService, &[0xaa; 32]), Ok(()));
    let other = keyed.check_key(Role::SecretService, &[0xab; 32]).expect_err("another key");
    assert!(other.to_string().contains(&"ab".repeat(32)), "{other}");
    assert!(keyed.vouches(None, &[0xaa; 32]) && keyed.vouches(service, &[0xaa; 32]));
    for role in [Role::TrustedNode, Role::Worker(0), Role::ParameterServer(0)] {
        assert!(!keyed.vouches(Some(role), &[0xaa; 32]), "{role}");
    }
    let pinned = keyed.with_service_key([0xab; 32]);
    assert!(!pinned.vouches(service, &[0xaa; 32]) && pinned.vouches(service, &[0xab; 32]));
    // A participant's key is asked for beside its evidence, never in its place.
    let keys = format!(r#""participant_keys":{{"worker0":["{}"]}},"#, key("a"));
    let keyed = with(&keys, "").expect("valid");
    assert!(!keyed.vouches(Some(Role::Worker(0)), &[0xaa; 32]));
    assert!(keyed.check_key(Role::Worker(0), &[0xab; 32]).is_err());
    assert_eq!(keyed.check_key(Role::Worker(1), &[0xab; 32]), Ok(()));
}

#[test]
fn a_digest_is_of_what_a_policy_means() {
    let plain = with("", "").expect("valid");
    let said = with(r#""allow_debug":false,"max_age_days":null,"#, "").expect("valid");
    assert_eq!(plain.digest(), said.digest(), "defaults that are spelled out");
    let listing = with(&format!(r#""policies":["{}"],"#, "7".repeat(64)), "").expect("valid");
    assert_eq!(plain.digest(), listing.digest(), "two policies may list one another");
    assert_eq!(plain.check_policy(Role::Worker(0), &plain.digest()), Ok(()));
    assert_eq!(listing.check_policy(Role::Worker(0), &[0x77; 32]), Ok(()));
    let other = plain.check_policy(Role::Worker(0), &[0x77; 32]).expect_err("another policy");
    assert!(other.to_string().contains(&"77".repeat(32)), "{other}");
    let platform = "0".repeat(32);
    let differing = [
        (r#""allow_debug":true,"#.to_owned(), ""),
        (r#""min_evaluation_number":19,"#.into(), ""),
        (r#""max_age_days":30,"#.into(), ""),
        (r#""tcb_date_min":"2026-01-01","#.into(), ""),
        (r#""allowed_advisories":[],"#.into(), ""),
        (format!(r#""platforms":["{platform}"],"#), ""),
        (format!(r#""platforms":{{"worker":["{platform}"]}},"#), ""),
        (format!(r#""platforms":{{"worker0":["{platform}"]}},"#), ""),
        (format!(r#""node_keys":["{}"],"#, "0".repeat(64)), ""),
        (format!(r#""service_keys":["{}"],"#, "0".repeat(64)), ""),
        (String::new(), r#""roles":["ps"],"#),
        (String::new(), r#""until":"2027-01-01","#),
        (String::new(), r#""roles":["ps"],"until":"2027-01-01","#),
    ];
    let mut digests = vec![plain.digest(), Policy::default().digest()];
    for (more, in_set) in differing {
        digests.push(with(&more, in_set).expect("valid").digest());
    }
    for (at, digest) in digests.iter().enumerate() {
        assert!(!digests[..at].contains(digest), "{at}");
    }
}

#[test]
fn a_set_with_an_end_is_history_after_it() {
    let own = report();
    let policy = with("", r#""until":"2027-01-15T00:00:00Z","#).expect("valid");
    let end = dcap::parse_timestamp("2027-01-15T00:00:00Z").expect("a date");
    assert_eq!(policy.check(&own, None, Some(Role::Worker(0)), end), Ok(()));
    let over = policy.check(&own, None, Some(Role::Worker(0)), end + 1);
    assert_eq!(over, Err(Rejection::Outlived(end)));
    assert_eq!(policy.check(&own, None, None, end + 1), Err(Rejection::Outlived(end)));
    assert_eq!(policy.ends(&own), Some(end));
    assert_eq!(with("", "").expect("valid").ends(&own), None);
}

#[test]
fn lists_of_keys_and_machines_are_read_strictly() {
    for more in [
        r#""service_keys":[],"#.to_owned(),
        r#""service_keys":["12"],"#.into(),
        r#""node_keys":"12","#.into(),
        r#""participant_keys":{"secret":[]},"#.into(),
        format!(r#""participant_keys":{{"node":["{}"]}},"#, "0".repeat(64)),
        format!(r#""participant_keys":{{"worker00":["{}"]}},"#, "0".repeat(64)),
        r#""platforms":{"worker":[]},"#.into(),
        r#""platforms":[],"#.into(),
        format!(r#""platforms":{{"chief":["{}"]}},"#, "0".repeat(32)),
        r#""policies":["12"],"#.into(),
    ] {
        assert!(with(&more, "").is_err(), "{more}");
    }
    assert!(with("", r#""until":"soon","#).is_err());
}

#[test]
fn a_role_whose_machine_is_named_takes_no_other() {
    let (quote, collateral, now) = real_td();
    let quote = Quote::parse(&quote).expect("a quote");
    let verdict = dcap::verify(&quote, &collateral, &dcap::Anchor::default(), now);
    let verdict = verdict.expect("genuine");
    let (own, other) = (Hex(&verdict.machine.ppid).to_string(), "7".repeat(32));
    let lists = format!(r#""platforms":{{"worker0":["{own}","{other}"],"ps":["{other}"]}},"#);
    let policy = with(&lists, "").expect("valid");
    let check = |role| policy.check_platform(&verdict, role, now);
    check(Some(Role::Worker(0))).expect("its machine");
    check(Some(Role::Worker(1))).expect("nobody named one");
    check(None).expect("no role yet");
    let refused = check(Some(Role::ParameterServer(0))).expect_err("another machine");
    assert!(refused.to_string().contains("does not list for this role"), "{refused}");
    let everybody = with(&format!(r#""platforms":["{other}"],"#), "").expect("valid");
    everybody.check_platform(&verdict, None, now).expect_err("asked before there is a role");
}

#[test]
fn the_page_has_each_key_with_an_example() {
    let page = include_str!("../../../../deploy/policy.md");
    // What a file may have is what it says when it finds something else.
    let known = |text: &str| {
        let said = Policy::parse(text.as_bytes()).expect_err("unknown").to_string();
        let (_, expected) = said.split_once("expected one of ").expect("names");
        let names = expected.split('`').skip(1).step_by(2).map(str::to_owned);
        names.collect::<Vec<String>>()
    };
    let of_file = known(r#"{"no":1}"#);
    let of_sets = known(r#"{"tdx_mrs":[{"no":1}]}"#);
    assert!(of_file.len() > 20 && of_sets.len() > 10, "{of_file:?} {of_sets:?}");
    for name in of_file.iter().chain(&of_sets) {
        let is_told = |line: &&str| line.starts_with("| ") && line.contains(&format!("`{name}`"));
        let line = page.lines().find(is_told).unwrap_or_else(|| panic!("no word about {name}"));
        let example = line.rsplit('|').nth(1).expect("a column").trim();
        assert!(example.starts_with('`') && example.contains(':'), "{name}: {example}");
    }
}
