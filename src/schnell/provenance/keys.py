"""The key that signs credentials, and its certificates: made, read, checked, renewed.

Keys of our own are a root, good for nothing but vouching, and a leaf that signs pictures. The leaf has the pair of
purposes that readers of C2PA take by default: signing claims and protecting e-mail (C2PA 2.2, section 14.5.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509 import Certificate
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from schnell.errors import CredentialsError

#: Readers without a time stamp call a picture invalid once its signer's certificate has expired.
_YEARS: Final = 10
#: A clock that is a little slow elsewhere must not find a new certificate to be of the future.
_HEAD_START: Final = timedelta(hours=1)
_CLAIM_SIGNING: Final = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")
_CURVES: Final = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """A private key, its certificates (its own first), and what else belongs to it.

    `key` is None where a signing service keeps it. `root_key` renews a leaf of our own; None with an operator's
    certificates. `older_roots` vouch for pictures that were signed before.
    """

    key: PrivateKeyTypes | None
    chain: tuple[Certificate, ...]
    root_key: PrivateKeyTypes | None = None
    older_roots: tuple[Certificate, ...] = ()

    @property
    def leaf(self) -> Certificate:
        """The certificate of `key`."""
        return self.chain[0]

    @property
    def roots(self) -> tuple[Certificate, ...]:
        """The certificates that vouch for themselves: whoever trusts them trusts what was signed."""
        return (*(each for each in self.chain if each.issuer == each.subject), *self.older_roots)

    @property
    def algorithm(self) -> str:
        """C2PA's name of the signature algorithm. Raises CredentialsError for a key that it has none for."""
        key = self.leaf.public_key()
        if isinstance(key, ed25519.Ed25519PublicKey):
            return "ed25519"
        if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
            return "ps256"
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        raise CredentialsError("the private key must be Ed25519, P-256, P-384, P-521, or RSA of 2048 bits and more")

    @property
    def is_ours(self) -> bool:
        """Whether the certificates were made by this server, and can be renewed by it."""
        return self.root_key is not None

    def key_pem(self) -> str:
        """The private key, unencrypted. Raises CredentialsError where it is not here."""
        if self.key is None:
            raise CredentialsError(
                "the private key is not here: import it with its certificates, or name the service that signs with it "
                "in SCHNELL_CREDENTIALS_SIGNING_URL"
            )
        return _key_pem(self.key)

    def signing_chain_pem(self) -> str:
        """The certificates that go into a picture: all but the root, which a reader must know from elsewhere."""
        sent = [each for each in self.chain if each.issuer != each.subject]
        return _certificates_pem(sent or self.chain[:1])

    def roots_pem(self) -> str:
        """What others need to trust this signer."""
        return _certificates_pem(self.roots)

    def to_pem(self) -> str:
        """Everything, as one text that `read_keys` reads."""
        keys = [each for each in (self.key, self.root_key) if each is not None]
        return "".join(map(_key_pem, keys)) + _certificates_pem([*self.chain, *self.older_roots])

    def check(self, moment: datetime) -> None:
        """Raise CredentialsError unless the key fits its certificate, and each certificate its issuer and `moment`."""
        if self.key is not None and _public(self.key) != _public(self.leaf):
            raise CredentialsError("the private key is not that of the first certificate")
        for certificate in self.chain:
            name = certificate.subject.rfc4514_string()
            if moment > certificate.not_valid_after_utc:
                raise CredentialsError(f"the certificate {name} expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
            if moment < certificate.not_valid_before_utc:
                raise CredentialsError(f"the certificate {name} is valid from {certificate.not_valid_before_utc} on")
        for certificate, issuer in zip(self.chain, self.chain[1:], strict=False):
            _check_issued(certificate, issuer)
        _ = self.algorithm


def make_keys(name: str, moment: datetime) -> SigningKeys:
    """New keys: a root called after `name`, and a leaf that it vouches for."""
    root_key = ed25519.Ed25519PrivateKey.generate()
    subject = _name(name, "root")
    root = (
        _begin(subject, subject, root_key, moment)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_pictures=False), critical=True)
        .sign(root_key, None)
    )
    return _issue_leaf(SigningKeys(root_key, (root,), root_key), name, moment)


def renew_keys(keys: SigningKeys, name: str, moment: datetime) -> SigningKeys:
    """A new leaf under the same root; a root that ends before the leaf would is followed by a new one.

    Raises:
        CredentialsError: the certificates are an operator's own.
    """
    if not keys.is_ours:
        raise CredentialsError("these certificates were imported: import new ones with `schnell credentials import`")
    root = keys.chain[-1]
    if root.not_valid_after_utc < moment + timedelta(days=365 * _YEARS):
        return replace(make_keys(name, moment), older_roots=keys.roots)
    return _issue_leaf(keys, name, moment)


def read_keys(pem: str) -> SigningKeys:
    """What `SigningKeys.to_pem` wrote, or an operator's own private key and certificates, the key's own first.

    Certificates alone are those of a key that a signing service keeps.

    Raises:
        CredentialsError: there is no certificate, or a part cannot be read.
    """
    keys = [_read_key(block) for block in _blocks(pem, "PRIVATE KEY")]
    try:
        certificates = [x509.load_pem_x509_certificate(block.encode()) for block in _blocks(pem, "CERTIFICATE")]
    except ValueError as cause:
        raise CredentialsError(f"a certificate cannot be read: {cause}") from cause
    if not certificates:
        raise CredentialsError("there is no certificate in the PEM text")
    chain = _chain_of(certificates)
    others = tuple(each for each in certificates if each not in chain)
    root_key = keys[1] if len(keys) > 1 else None
    return SigningKeys(keys[0] if keys else None, chain, root_key, others)


def _chain_of(certificates: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """The first certificate and its issuers as far as they are there, in this order."""
    chain = [certificates[0]]
    while chain[-1].issuer != chain[-1].subject:
        issuer = next((each for each in certificates if each.subject == chain[-1].issuer and each not in chain), None)
        if issuer is None:
            break
        chain.append(issuer)
    return tuple(chain)


def _issue_leaf(keys: SigningKeys, name: str, moment: datetime) -> SigningKeys:
    assert isinstance(keys.root_key, ed25519.Ed25519PrivateKey)  # noqa: S101 - ours are made so
    root, key = keys.chain[-1], ed25519.Ed25519PrivateKey.generate()
    issuer_key = x509.SubjectKeyIdentifier.from_public_key(keys.root_key.public_key())
    leaf = (
        _begin(_name(name, "signer"), root.subject, key, moment)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_pictures=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_CLAIM_SIGNING, ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
        .sign(keys.root_key, None)
    )
    return SigningKeys(key, (leaf, root), keys.root_key, keys.older_roots)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ed25519.Ed25519PrivateKey, moment: datetime
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _HEAD_START)
        # some days more than ten years of 365 days: a leaf that is made with its root ends with it
        .not_valid_after(moment + timedelta(days=365 * _YEARS + 30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(name: str, role: str) -> x509.Name:
    # X.509 limits a common name to 64 characters; the rest of a long one says nothing
    parts = ((NameOID.ORGANIZATION_NAME, name[:64]), (NameOID.COMMON_NAME, f"{name[:50]} {role}"))
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts])


def _usage(*, signs_pictures: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs_pictures,
        key_cert_sign=not signs_pictures,
        crl_sign=not signs_pictures,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _check_issued(certificate: Certificate, issuer: Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as cause:
        name, by = certificate.subject.rfc4514_string(), issuer.subject.rfc4514_string()
        raise CredentialsError(f"the certificate {name} was not issued by {by}, which follows it") from cause


def _blocks(pem: str, kind: str) -> list[str]:
    """The blocks of a PEM text whose name ends with `kind`, such as EC PRIVATE KEY."""
    found, inside = [], None
    for line in pem.splitlines():
        if line.startswith("-----BEGIN ") and line.rstrip().endswith(f"{kind}-----"):
            inside = [line]
        elif inside is not None:
            inside.append(line)
            if line.startswith("-----END "):
                found.append("\n".join(inside) + "\n")
                inside = None
    return found


def _read_key(block: str) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(block.encode(), password=None)
    except TypeError as cause:
        raise CredentialsError("the private key is encrypted: decrypt it first (openssl pkey -in … -out …)") from cause
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise CredentialsError(f"the private key cannot be read: {cause}") from cause


def _public(holder: PrivateKeyTypes | Certificate) -> bytes:
    encoding = serialization.Encoding.DER
    return holder.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key_pem(key: PrivateKeyTypes) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def _certificates_pem(certificates: Sequence[Certificate]) -> str:
    return "".join(each.public_bytes(_PEM).decode() for each in certificates)
