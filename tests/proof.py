"""Pictures, keys and signed files for the tests of proof."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from schnell.provenance.credentials import CredentialsSigner
from schnell.provenance.image_file import MEDIA_TYPES, encode_image
from schnell.provenance.keys import SigningKeys, make_keys
from schnell.provenance.mark import SCHEME
from schnell.provenance.proof import Proof
from schnell.provenance.receipt import Receipt
from schnell.spec import OutputFormat

NOW = datetime.now(UTC)
RECEIPT = Receipt(
    engine="1.2.3",
    model="schnell-mini",
    model_sha256="ab" * 32,
    precision="float32",
    prompt="a secret garden",
    seed=7,
    width=512,
    height=512,
    steps=4,
    go_fast=True,
    output_format="webp",
    output_quality=80,
    mark=SCHEME,
)


@cache
def keys() -> SigningKeys:
    return make_keys("Test Studio", NOW)


@cache
def signer() -> CredentialsSigner:
    return CredentialsSigner.checked(keys())


def leaf_for(key: ec.EllipticCurvePrivateKey, purpose: x509.ObjectIdentifier | None = None) -> x509.Certificate:
    """A certificate of another kind of key, under the same root: for signing pictures, or for this purpose alone."""
    own = keys()
    name = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Maker"), x509.NameAttribute(NameOID.COMMON_NAME, "A camera")]
    begun = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(name))
        .issuer_name(own.chain[1].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(own.leaf.not_valid_before_utc)
        .not_valid_after(own.leaf.not_valid_after_utc)
    )
    for extension in own.leaf.extensions:
        if isinstance(extension.value, x509.ExtendedKeyUsage) and purpose:
            begun = begun.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        elif not isinstance(extension.value, x509.SubjectKeyIdentifier):
            begun = begun.add_extension(extension.value, extension.critical)
    assert isinstance(own.root_key, ed25519.Ed25519PrivateKey)
    return begun.sign(own.root_key, None)


def icon(side: int = 512, ground: tuple[int, int, int] = (90, 140, 220)) -> Image.Image:
    """What schnell-mini draws: a shaded thing on plain ground."""
    picture = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(picture)
    for ring in range(40):
        reach = side * (0.32 - 0.006 * ring)
        box = (side / 2 - reach, side / 2 - reach, side / 2 + reach, side / 2 + reach)
        draw.ellipse(box, fill=(180 + ring, 30 + 3 * ring, 40 + ring))
    return picture.filter(ImageFilter.GaussianBlur(1))


def landscape(side: int = 512, seed: int = 0) -> Image.Image:
    """As busy as a photograph: noise of which each size has about the same share."""
    chance = np.random.default_rng(seed)
    levels = [
        np.asarray(
            Image.fromarray(chance.integers(0, 255, (2**step, 2**step, 3), dtype=np.uint8)).resize((side, side)),
            np.float64,
        )
        / (step + 1)
        for step in range(2, 9)
    ]
    mixed = np.sum(levels, axis=0)
    return Image.fromarray(np.rint(255 * (mixed - mixed.min()) / np.ptp(mixed)).astype(np.uint8))


def pixels_of(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"))


def resaved(picture: Image.Image, file_format: str, **options: int) -> Image.Image:
    """The picture after a file of this format, without any metadata."""
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def proven(file_format: OutputFormat = "webp", picture: Image.Image | None = None) -> bytes:
    """A marked and signed file with the receipt `RECEIPT`."""
    receipt = replace(RECEIPT, output_format=file_format)
    proof = Proof(marks=True, signer=signer())
    marked, _ = proof.mark(picture or icon(), receipt)
    return proof.sign(encode_image(marked, receipt), receipt, with_prompt=True)[0]


def media_type(file_format: OutputFormat) -> str:
    return MEDIA_TYPES[file_format]
