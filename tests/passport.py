#!/usr/bin/env python3
"""A job's passport by the programs of those whose forms it has: model-signing, in-toto-attestation, CycloneDX."""
import base64
import json
import pathlib
import subprocess
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.scai.v0 import scai, scai_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement as statements
from in_toto_attestation.v1 import statement_pb2
from sigstore_models.bundle.v1 import Bundle

model, signer = pathlib.Path(sys.argv[1]), sys.argv[2]


def is_signed() -> bool:
    """What `model_signing verify key` says."""
    words = ["verify", "key", str(model), "--signature", str(model / "model.sig"), "--public_key",
             str(model / "passport.pub")]
    return subprocess.run([signer, *words], capture_output=True, check=False).returncode == 0


def statement(name: str, kind: str) -> dict:
    """The statement in a bundle, by Sigstore's and in-toto's own classes; its predicate."""
    text = (model / name).read_text()
    envelope = Bundle.from_json(text).dsse_envelope
    assert envelope.payload_type == "application/vnd.in-toto+json"
    payload = base64.b64decode(json.loads(text)["dsseEnvelope"]["payload"])
    parsed = json_format.Parse(payload, statement_pb2.Statement())
    statements.Statement.copy_from_pb(parsed).validate()
    assert parsed.predicate_type == kind, parsed.predicate_type
    return json.loads(payload)["predicate"]


assert is_signed(), "model_signing refuses what is true"
provenance = json_format.ParseDict(
    statement("training.sigstore.json", "https://slsa.dev/provenance/v1"), provenance_pb2.Provenance())
assert provenance.build_definition.build_type and provenance.run_details.builder.id
names = [dependency.name for dependency in provenance.build_definition.resolved_dependencies]
assert {"hfl", "initial parameters", "data of worker0", "data of worker1"} <= set(names), names
report = json_format.ParseDict(
    statement("attestation.sigstore.json", "https://in-toto.io/attestation/scai/v0.3"), scai_pb2.AttributeReport())
for attribute in report.attributes:
    scai.AttributeAssertion.copy_from_pb(attribute).validate()
kinds = [attribute.attribute for attribute in report.attributes]
assert kinds.count("SIGNED_IN_TDX") == 1 and kinds.count("TRAINED_IN_TDX") == 3, kinds
tested = json_format.ParseDict(
    statement("evaluation.sigstore.json", "https://in-toto.io/attestation/test-result/v0.1"),
    test_result_pb2.TestResult())
assert tested.result == "PASSED" and len(tested.passed_tests) == 1, tested
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str((model / "model.cdx.json").read_text())
assert fault is None, fault
# One byte of each file that is signed, and of the signature.
for path in sorted(model.iterdir()):
    if path.name.endswith(".sigstore.json"):
        continue
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        for turn in range(2):
            file.seek(middle)
            byte = file.read(1)[0] ^ 1
            file.seek(middle)
            file.write(bytes([byte]))
            file.flush()
            assert is_signed() == (turn == 1), f"{path.name}: byte {middle}"
print("passport: model-signing, in-toto-attestation, sigstore-models and CycloneDX agree")
