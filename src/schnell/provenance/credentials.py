"""Content credentials (C2PA, https://spec.c2pa.org): a signed manifest inside a picture's file, of how it was made.

c2pa-python, the official library, writes and signs it. The rest of the file stays as it was, byte for byte.
"""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

from c2pa import Builder, C2paError, C2paSignerInfo, C2paSigningAlg, Context, Signer
from PIL import Image

from schnell.clock import now
from schnell.errors import CredentialsError
from schnell.provenance.credentials_reading import RECEIPT_LABEL, read_credentials
from schnell.provenance.keys import SigningKeys
from schnell.provenance.receipt import engine_version, mark_number

if TYPE_CHECKING:
    # with it comes an HTTP client, which few installations sign with
    from schnell.provenance.signing_service import SigningService

_log = logging.getLogger(__name__)
#: IPTC's word for a picture that a trained model has made (https://cv.iptc.org/newscodes/digitalsourcetype/).
TRAINED_MEDIA: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
#: An assertion of our own, as the receipt is: C2PA's `c2pa.soft-binding` takes only algorithms of its list.
MARK_LABEL: Final = "schnell.mark"
_CREATED: Final = ("c2pa.actions", "c2pa.actions.v2", "c2pa.ai-disclosure", RECEIPT_LABEL, MARK_LABEL)
_BUILDING: Final = {
    # what a self-made certificate lacks is a list of trusted roots; the result is not verified again for each picture
    "verify": {"verify_after_sign": False, "verify_trust": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"created_assertion_labels": list(_CREATED), "thumbnail": {"enabled": False}},
}
_UNTRUSTED: Final = "signingCredential.untrusted"


@dataclass(frozen=True)
class CredentialsSigner:
    """Signs pictures with `keys`, or with what `service` keeps for their certificates.

    `with_prompt` lets the prompt into the manifest, `with_time` the time (two runs then differ by it), `time_stamp_url`
    is an RFC 3161 service that vouches for the time. Safe to call from several threads.
    """

    keys: SigningKeys
    with_prompt: bool = True
    with_time: bool = False
    time_stamp_url: str | None = None
    service: "SigningService | None" = None
    # what the service last refused: the library's own error says only that there is no signature
    _refusals: list[CredentialsError] = field(default_factory=list, init=False, compare=False, repr=False)
    # one signer of the library signs one picture at a time, and refuses a second one meanwhile
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, compare=False, repr=False)

    @classmethod
    def checked(cls, keys: SigningKeys, **options: Any) -> Self:
        """A signer whose keys are known to work: a picture was signed and read.

        Raises:
            CredentialsError: what is wrong with the keys.
        """
        keys.check(now())
        signer = cls(keys, **options)
        # without the time stamp: a service that is away now keeps no server from starting
        trial = BytesIO()
        Image.new("RGB", (1, 1)).save(trial, "PNG")
        data, _ = cls(keys, service=signer.service).sign(trial.getvalue(), "image/png", {}, None)
        found = read_credentials(data, "image/png", keys.roots_pem())
        problems = [each for each in found.problems if not each.startswith(_UNTRUSTED)]
        if problems:
            raise CredentialsError(f"readers of C2PA do not accept these certificates: {', '.join(problems)}")
        return signer

    def sign(
        self,
        data: bytes,
        media_type: str,
        receipt: Mapping[str, Any],
        moment: datetime | None,
        *,
        with_prompt: bool = True,
    ) -> tuple[bytes, str]:
        """A picture's file with signed credentials inside, and their label. `moment` goes in with `with_time` only.

        Raises:
            CredentialsError: it could not be signed.
        """
        label = f"urn:c2pa:{uuid4()}"
        shown = receipt if self.with_prompt and with_prompt else _without_prompt(receipt)
        definition = _manifest(label, media_type, shown, receipt, moment if self.with_time else None)
        signed = BytesIO()
        with self._turn:
            self._build(definition, media_type, data, signed)
        return signed.getvalue(), label

    def manifest_for(self, data: bytes, media_type: str, receipt: Mapping[str, Any], label: str) -> bytes:
        """Credentials for a file of ours, kept beside it: without prompt, seed and LoRAs, for strangers."""
        definition = _manifest(label, media_type, _for_strangers(receipt), receipt, None)
        with self._turn, _make_builder(definition) as builder:
            builder.set_no_embed()
            return self._sign(builder, self._signer, media_type, data, BytesIO())

    def _build(self, definition: str, media_type: str, data: bytes, signed: BytesIO) -> None:
        if self.time_stamp_url is not None:
            try:
                with _make_builder(definition) as builder:
                    self._sign(builder, self._stamped_signer, media_type, data, signed)
            except CredentialsError as cause:
                # a picture without a time stamp is worth more than none
                _log.warning("no time stamp from %s: %s", self.time_stamp_url, cause)
                signed.seek(0)
                signed.truncate()
            else:
                return
        with _make_builder(definition) as builder:
            self._sign(builder, self._signer, media_type, data, signed)

    def _sign(self, builder: Builder, signer: Signer, media_type: str, data: bytes, signed: BytesIO) -> bytes:
        self._refusals.clear()
        try:
            return bytes(builder.sign(signer, media_type, BytesIO(data), signed))
        except C2paError as cause:
            if self._refusals:
                raise self._refusals[-1] from cause
            raise CredentialsError(f"a picture could not be signed: {cause}") from cause

    @cached_property
    def _signer(self) -> Signer:
        return self._make_signer(None)

    @cached_property
    def _stamped_signer(self) -> Signer:
        return self._make_signer(self.time_stamp_url) if self.time_stamp_url else self._signer

    def _make_signer(self, time_stamp_url: str | None) -> Signer:
        algorithm, certificates = self.keys.algorithm, self.keys.signing_chain_pem()
        try:
            if self.service is not None:
                by_name = C2paSigningAlg[algorithm.upper()]
                return Signer.from_callback(self._ask_service, by_name, certificates, time_stamp_url)
            url = None if time_stamp_url is None else time_stamp_url.encode()
            parts = (algorithm, certificates, self.keys.key_pem())
            return Signer.from_info(C2paSignerInfo(*(part.encode() for part in parts), url))
        except C2paError as cause:
            raise CredentialsError(f"the signing key cannot be used: {cause}") from cause

    def _ask_service(self, data: bytes) -> bytes:
        assert self.service is not None  # noqa: S101 - set where this is a signer's callback
        try:
            return self.service.sign(data, self.keys.algorithm)
        except CredentialsError as error:
            self._refusals.append(error)
            return b""  # no signature, in the library's words


def _make_builder(definition: str) -> Builder:
    return Builder.from_json(definition, Context.from_dict(_BUILDING))


def _manifest(
    label: str, media_type: str, shown: Mapping[str, Any], receipt: Mapping[str, Any], moment: datetime | None
) -> str:
    agent = {"name": "schnell", "version": engine_version()}
    action: dict[str, Any] = {
        "action": "c2pa.created",
        "digitalSourceType": TRAINED_MEDIA,
        "softwareAgent": agent,
    }
    if moment is not None:
        action["when"] = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    assertions = [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}, *_disclosure(shown)]
    if shown:
        assertions.append({"label": RECEIPT_LABEL, "data": dict(shown), "kind": "Json"})
    if scheme := receipt.get("mark"):
        data = {"alg": scheme, "value": f"{mark_number(receipt):010x}"}
        assertions.append({"label": MARK_LABEL, "data": data, "kind": "Json"})
    definition = {"label": label, "format": media_type, "claim_generator_info": [agent], "assertions": assertions}
    return json.dumps(definition)


def _disclosure(shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """C2PA 2.4's disclosure of the model: which one, and that a person wrote the prompt."""
    model = shown.get("model")
    if model is None:
        return []
    data = {
        "modelType": "c2pa.types.model",
        "modelName": model["name"],
        "modelIdentifier": f"sha256:{model['sha256']}",
        "humanOversightLevel": "prompt_guided",
    }
    return [{"label": "c2pa.ai-disclosure", "data": data}]


def _for_strangers(receipt: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: receipt[name] for name in ("schnell", "engine", "model", "width", "height", "mark") if name in receipt
    }


def _without_prompt(receipt: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in receipt.items() if name != "prompt"}
