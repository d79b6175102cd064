"""Signed credentials, with c2pa-python as the judge."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import c2pa
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from proof import NOW, RECEIPT, icon, keys, leaf_for, media_type, proven, resaved, signer
from schnell.errors import CredentialsError, ImageMetadataError
from schnell.provenance.credentials import CredentialsSigner
from schnell.provenance.credentials_reading import read_credentials
from schnell.provenance.file_parts import media_type_in, without_credentials
from schnell.provenance.image_file import encode_image
from schnell.provenance.keys import make_keys
from schnell.provenance.proof import NO_PROOF, Proof
from schnell.spec import OutputFormat

FORMATS: tuple[OutputFormat, ...] = ("webp", "jpeg", "png")
SIGNED = {each: proven(each) for each in FORMATS}
ROOT = keys().roots_pem()


@pytest.mark.parametrize("file_format", FORMATS)
def test_without_the_root_only_the_signer_is_unknown(file_format: OutputFormat) -> None:
    found = read_credentials(SIGNED[file_format], media_type(file_format))
    assert (found.state, found.problems) == ("valid", ("signingCredential.untrusted (c2pa.signature)",))


@pytest.mark.parametrize("file_format", FORMATS)
def test_with_the_root_credentials_are_trusted(file_format: OutputFormat) -> None:
    found = read_credentials(SIGNED[file_format], media_type(file_format), ROOT)
    assert (found.state, found.problems, found.signer) == ("trusted", (), "Test Studio signer")
    assert found.says_model_made
    assert found.receipt == replace(RECEIPT, output_format=file_format).to_json()


@pytest.mark.parametrize("file_format", FORMATS)
def test_one_flipped_byte_names_the_broken_assertion(file_format: OutputFormat) -> None:
    broken = bytearray(SIGNED[file_format])
    broken[len(broken) // 2 if file_format != "jpeg" else -100] ^= 1
    found = read_credentials(bytes(broken), media_type(file_format), ROOT)
    assert (found.state, found.problems) == ("invalid", ("assertion.dataHash.mismatch (c2pa.hash.data)",))


def test_the_credentials_of_another_picture_are_invalid() -> None:
    # the manifest of one PNG behind the header of another
    at = SIGNED["png"].index(b"caBX") - 4
    chunk = SIGNED["png"][at : at + 12 + int.from_bytes(SIGNED["png"][at : at + 4], "big")]
    other = encode_image(icon(512, (200, 60, 60)), replace(RECEIPT, output_format="png"))
    found = read_credentials(other[:33] + chunk + other[33:], "image/png", ROOT)
    assert found.state == "invalid"
    assert any(problem.startswith("assertion.dataHash.mismatch") for problem in found.problems)


def test_a_saved_copy_has_none() -> None:
    copy = BytesIO()
    resaved(Image.open(BytesIO(SIGNED["webp"])), "WEBP", quality=80).save(copy, "WEBP")
    assert read_credentials(copy.getvalue(), "image/webp").state == "absent"


@pytest.mark.parametrize("file_format", FORMATS)
def test_without_its_credentials_a_file_is_what_it_was(file_format: OutputFormat) -> None:
    receipt = replace(RECEIPT, output_format=file_format)
    marked, _ = Proof(marks=True).mark(icon(), receipt)
    assert without_credentials(SIGNED[file_format]) == encode_image(marked, receipt)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_without_credentials_comes_back_as_it_is(file_format: OutputFormat) -> None:
    plain = encode_image(icon(), replace(RECEIPT, output_format=file_format))
    assert without_credentials(plain) == plain


@given(
    data=st.binary(max_size=200), start=st.sampled_from([b"", b"RIFF1234WEBP", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
)
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_refused_and_nothing_else(data: bytes, start: bytes) -> None:
    try:
        without_credentials(start + data)
    except ImageMetadataError:
        return
    assert media_type_in(start + data) is not None


def test_the_prompt_stays_out_where_the_request_or_the_operator_says_so() -> None:
    plain = encode_image(icon(), RECEIPT)
    asked, _ = signer().sign(plain, "image/webp", RECEIPT.to_json(), None, with_prompt=False)
    never, _ = CredentialsSigner(keys(), with_prompt=False).sign(plain, "image/webp", RECEIPT.to_json(), None)
    for signed in (asked, never):
        found = read_credentials(signed, "image/webp", ROOT)
        assert found.state == "trusted"
        assert found.receipt is not None
        assert "prompt" not in found.receipt


def test_the_time_goes_in_only_where_it_is_asked_for() -> None:
    plain = encode_image(icon(), RECEIPT)
    timed, _ = CredentialsSigner(keys(), with_time=True).sign(plain, "image/webp", RECEIPT.to_json(), NOW)
    stamp = NOW.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    assert stamp in timed
    assert read_credentials(timed, "image/webp", ROOT).state == "trusted"
    assert stamp[:10] not in SIGNED["webp"]


def test_a_time_service_that_is_away_costs_the_stamp_and_not_the_picture() -> None:
    stamped = CredentialsSigner(keys(), time_stamp_url="http://127.0.0.1:9/")
    signed, _ = stamped.sign(encode_image(icon(), RECEIPT), "image/webp", RECEIPT.to_json(), None)
    assert read_credentials(signed, "image/webp", ROOT).state == "trusted"


def test_credentials_beside_a_file_hold_for_it_and_name_no_prompt() -> None:
    plain = without_credentials(SIGNED["webp"])
    beside = signer().manifest_for(
        plain, "image/webp", RECEIPT.to_json(), "urn:c2pa:4769380b-654a-4d99-903f-ad32ab037e50"
    )
    assert RECEIPT.prompt.encode() not in beside


def test_threads_may_sign_at_once() -> None:
    plain = encode_image(icon(256), RECEIPT)

    def sign(_: int) -> str:
        signed, _label = signer().sign(plain, "image/webp", RECEIPT.to_json(), None)
        return read_credentials(signed, "image/webp", ROOT).state

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(sign, range(64))) == {"trusted"}


@pytest.mark.parametrize(
    ("source", "made_by_model"), [("digitalCapture", False), ("compositeWithTrainedAlgorithmicMedia", True)]
)
def test_credentials_of_other_makers_are_read(source: str, made_by_model: bool) -> None:
    """An action without a version and a tool's name as text, as files of 2024 have them; signed with P-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    other = replace(keys(), key=key, chain=(leaf_for(key), keys().chain[1]))
    place = f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"
    actions = {"actions": [{"action": "c2pa.created", "softwareAgent": "Camera", "digitalSourceType": place}]}
    definition = {
        "claim_generator_info": [{"name": "Camera 3000"}],
        "assertions": [{"label": "c2pa.actions", "data": actions}],
    }
    parts = (other.algorithm, other.signing_chain_pem(), other.key_pem())
    signed = BytesIO()
    with c2pa.Builder.from_json(json.dumps(definition)) as builder:
        maker = c2pa.Signer.from_info(c2pa.C2paSignerInfo(*(part.encode() for part in parts), None))
        builder.sign(
            maker, "image/png", BytesIO(encode_image(icon(256), replace(RECEIPT, output_format="png"))), signed
        )
    found = read_credentials(signed.getvalue(), "image/png")
    assert (found.state, found.signer) == ("valid", "A camera")
    assert (found.tool or "").startswith("Camera 3000")
    assert (found.source_type, found.says_model_made, found.receipt) == (place, made_by_model, None)


def test_each_picture_has_a_label_of_its_own() -> None:
    first, second = (read_credentials(proven(), "image/webp").label for _ in range(2))
    assert first != second


def test_keys_that_readers_refuse_are_named_when_they_are_tried() -> None:
    with pytest.raises(CredentialsError, match="expired"):
        CredentialsSigner.checked(make_keys("Old", NOW.replace(year=2010)))


def test_without_proof_nothing_changes() -> None:
    receipt = replace(RECEIPT, mark=None)
    assert NO_PROOF.mark(icon(), receipt)[1] is None
    assert NO_PROOF.sign(b"data", receipt, with_prompt=True) == (b"data", None)
