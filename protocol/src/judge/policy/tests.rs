//! Policies: what they accept, what they name, what is told about them.

use super::*;
use crate::SimPlatform;

fn report() -> TdReport {
    *SimPlatform::new(1_800_000_000).report()
}

#[test]
fn a_template_accepts_its_td_and_no_other() {
    let own = report();
    let text = Policy::template(&own, None);
    let policy = Policy::parse(text.as_bytes()).expect("our own file");
    assert_eq!(policy, Policy::same_as(&own));
    policy.check(&own, None, Some(Role::Worker(0))).expect("the same TD");
    for index in 0..4 {
        let mut other = own;
        other.rt_mr[index][47] ^= 1;
        let refused = policy.check(&other, None, None);
        assert!(matches!(refused, Err(Rejection::Measurement(_))), "{index}");
    }
    let mut other = own;
    other.mr_owner[0] ^= 1;
    policy.check(&other, None, None).expect("switched off");
    other.td_attributes[0] |= 1;
    assert!(matches!(policy.check(&other, None, None), Err(Rejection::Rules(_))));
}

#[test]
fn the_configuration_counts_where_there_is_one_and_each_register_that_differs_is_named() {
    let mut pod = report();
    pod.mr_config_id = [7; 48];
    let text = Policy::template(&pod, None);
    let policy = Policy::parse(text.as_bytes()).expect("our own file");
    assert_eq!(policy, Policy::same_as(&pod));
    assert!(!policy.leaves_config_open());
    policy.check(&pod, None, None).expect("the same pod");
    // The same guest with another container; and another kernel in it too.
    let mut other = pod;
    other.mr_config_id = [8; 48];
    let why = policy.check(&other, None, None).expect_err("another document").to_string();
    let named = format!("MRCONFIGID is {}, expected {}", Hex(&[8; 48]), Hex(&[7; 48]));
    assert!(why.contains(&named) && !why.contains("MRTD"), "{why}");
    other.rt_mr[2][0] ^= 1;
    let why = policy.check(&other, None, None).expect_err("another kernel").to_string();
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
    policy.check(&a, None, Some(Role::ParameterServer(0))).expect("its role");
    policy.check(&b, None, Some(Role::Worker(1))).expect("its role");
    policy.check(&a, None, None).expect("no role yet");
    let swapped = policy.check(&a, None, Some(Role::Worker(0)));
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
