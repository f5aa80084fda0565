# A resource policy of the Trustee (kbs-client set-resource-policy): who gets default/hfl/*. The measurement that its
# attestation service affirms is every pod's of that guest; image and arguments are in MRCONFIGID alone.
package policy

import rego.v1

default allow := false

# What hfl initdata printed, one a site.
pods := {"000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"}

allow if {
	data.plugin == "resource"
	array.slice(data["resource-path"], 0, 2) == ["default", "hfl"]
	cpu := input.submods.cpu0
	cpu["ear.status"] == "affirming"
	cpu["ear.veraison.annotated-evidence"].tdx.quote.body.mr_config_id in pods
}
