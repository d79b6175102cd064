"""Keys that are kept elsewhere, and times that others vouch for, by services on this machine; c2pa-python judges."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from proof import RECEIPT, icon, keys, leaf_for
from schnell.errors import CredentialsError
from schnell.provenance.credentials import CredentialsSigner
from schnell.provenance.credentials_reading import read_credentials
from schnell.provenance.image_file import encode_image
from schnell.provenance.keys import SigningKeys
from schnell.provenance.signing_service import SigningService

Answer = Callable[[bytes, str | None], tuple[int, bytes]]
ROOT = keys().roots_pem()
CURVE_KEY = ec.generate_private_key(ec.SECP256R1())


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A service on this machine; `answer` gets the body and the Authorization header, and gives status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, content = answer(body, self.headers["authorization"])
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.send_header("content-type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/sign"
        server.shutdown()


def vault(data: bytes, _: str | None) -> tuple[int, bytes]:
    key = keys().key
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return 200, key.sign(data)


def der_vault(data: bytes, _: str | None) -> tuple[int, bytes]:
    return 200, CURVE_KEY.sign(data, ec.ECDSA(hashes.SHA256()))


def raw_vault(data: bytes, _: str | None) -> tuple[int, bytes]:
    halves = decode_dss_signature(CURVE_KEY.sign(data, ec.ECDSA(hashes.SHA256())))
    return 200, b"".join(half.to_bytes(32, "big") for half in halves)


def without_key() -> SigningKeys:
    return replace(keys(), key=None, root_key=None)


def sign(signer: CredentialsSigner) -> bytes:
    return signer.sign(encode_image(icon(256), RECEIPT), "image/webp", RECEIPT.to_json(), None)[0]


def test_a_key_that_is_elsewhere_signs_as_one_that_is_here() -> None:
    with serving(vault) as url:
        signed = sign(CredentialsSigner.checked(without_key(), service=SigningService(url)))
    found = read_credentials(signed, "image/webp", ROOT)
    assert (found.state, found.signer, found.problems) == ("trusted", "Test Studio signer", ())


@pytest.mark.parametrize("answer", [der_vault, raw_vault])
def test_both_forms_of_an_ecdsa_signature_are_taken(answer: Answer) -> None:
    of_curve = replace(without_key(), chain=(leaf_for(CURVE_KEY), keys().chain[1]))
    with serving(answer) as url:
        signed = sign(CredentialsSigner.checked(of_curve, service=SigningService(url)))
    assert read_credentials(signed, "image/webp", ROOT).state == "trusted"


def test_the_token_is_sent_and_a_refusal_is_named_without_the_address() -> None:
    def guarded(data: bytes, authorization: str | None) -> tuple[int, bytes]:
        return vault(data, None) if authorization == "Bearer right" else (401, b"who are you?")

    with serving(guarded) as url:
        CredentialsSigner.checked(without_key(), service=SigningService(url, "right"))
        with pytest.raises(CredentialsError, match="answered 401") as refused:
            CredentialsSigner.checked(without_key(), service=SigningService(url, "wrong"))
    assert "127.0.0.1" not in str(refused.value)


def test_a_service_that_stumbles_once_is_asked_again() -> None:
    answers = iter([(503, b""), None, None])

    def stumbling(data: bytes, _: str | None) -> tuple[int, bytes]:
        return next(answers) or vault(data, None)

    with serving(stumbling) as url:
        CredentialsSigner.checked(without_key(), service=SigningService(url))


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda _data, _token: (200, b""), "could not be signed"),
        (lambda _data, _token: (200, b"x" * 64), "claimSignature"),
        (lambda _data, _token: (503, b""), "answered 503"),
    ],
)
def test_a_service_that_does_not_sign_is_named_at_the_start(answer: Answer, complaint: str) -> None:
    with serving(answer) as url, pytest.raises(CredentialsError, match=complaint):
        CredentialsSigner.checked(without_key(), service=SigningService(url))


def test_a_service_of_another_curve_or_none_is_named() -> None:
    of_curve = replace(without_key(), chain=(leaf_for(CURVE_KEY), keys().chain[1]))
    with serving(lambda _data, _token: (200, b"not DER")) as url, pytest.raises(CredentialsError, match="no ECDSA"):
        CredentialsSigner.checked(of_curve, service=SigningService(url))
    with pytest.raises(CredentialsError, match="gives no signature: ConnectError"):
        CredentialsSigner.checked(without_key(), service=SigningService("http://127.0.0.1:9/"))


@pytest.fixture(scope="module")
def time_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """OpenSSL's RFC 3161 time-stamping, behind HTTP."""
    folder = tmp_path_factory.mktemp("time")
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption()))
    (folder / "tsa.pem").write_bytes(leaf_for(key, ExtendedKeyUsageOID.TIME_STAMPING).public_bytes(Encoding.PEM))
    (folder / "tsa.cnf").write_text(TIME_STAMPING)
    (folder / "serial").write_text("01\n")
    reply = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query.tsq", "-out", "reply.tsr"]

    def stamp(query: bytes, _: str | None) -> tuple[int, bytes]:
        (folder / "query.tsq").write_bytes(query)
        subprocess.run(reply, cwd=folder, check=True, capture_output=True)
        return 200, (folder / "reply.tsr").read_bytes()

    with serving(stamp) as url:
        yield url


def test_a_time_stamp_of_a_real_service_is_in_the_picture(time_service: str) -> None:
    stamped = sign(CredentialsSigner(keys(), time_stamp_url=time_service))
    found = read_credentials(stamped, "image/webp", ROOT)
    assert (found.state, found.problems) == ("trusted", ())
    assert found.signed_at is not None
    # to whom knows neither the signer nor the time service it is a picture by a stranger, not a broken one
    assert read_credentials(stamped, "image/webp").state == "valid"
    assert read_credentials(sign(CredentialsSigner(keys())), "image/webp", ROOT).signed_at is None


TIME_STAMPING = """
[tsa]
default_tsa = stamping
[stamping]
serial = serial
signer_cert = tsa.pem
certs = tsa.pem
signer_key = key.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
"""
