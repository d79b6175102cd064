"""Reading content credentials (C2PA) of any maker: what they say, by whom, and whether they hold.

c2pa-python decides. Nothing that a file names is fetched: whoever checks a picture must not call its maker.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from c2pa import C2paError, Context, Reader

#: The assertion of ours that holds a picture's receipt.
RECEIPT_LABEL: Final = "schnell.receipt"
_READING: Final = {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True}
_STATES: Final = {"Trusted": "trusted", "Valid": "valid"}


@dataclass(frozen=True, slots=True)
class CredentialsReading:
    """What a file's credentials say, and whether they hold.

    `state` is `absent`, `trusted`, `valid` (intact, by a signer that is not trusted here) or `invalid`. `problems` are
    C2PA's codes, each with what it is about. `source_type` is IPTC's word for how the picture came about, `receipt`
    schnell's own.
    """

    state: str
    label: str | None = None
    signer: str | None = None
    tool: str | None = None
    signed_at: str | None = None
    source_type: str | None = None
    problems: tuple[str, ...] = ()
    receipt: Mapping[str, Any] | None = None

    @property
    def says_model_made(self) -> bool:
        """Whether they say that a trained model has made the picture, or part of it."""
        return self.source_type is not None and "trainedalgorithmicmedia" in self.source_type.lower()


def read_credentials(data: bytes, media_type: str, roots_pem: str = "") -> CredentialsReading:
    """The credentials inside a file of this media type; signers that `roots_pem` vouches for are trusted."""
    options: dict[str, Any] = {"verify": _READING}
    if roots_pem:
        options["trust"] = {"user_anchors": roots_pem}
    try:
        with Context.from_dict(options) as context, Reader(media_type, BytesIO(data), context=context) as reader:
            store = json.loads(reader.json())
    except C2paError as cause:
        if isinstance(cause, C2paError.ManifestNotFound):
            return CredentialsReading("absent")
        return CredentialsReading("invalid", problems=(f"unreadable: {str(cause)[:300]}",))
    return _reading_of(store)


def _reading_of(store: Mapping[str, Any]) -> CredentialsReading:
    label = store.get("active_manifest")
    manifest = store.get("manifests", {}).get(label, {})
    signature = manifest.get("signature_info") or {}
    assertions = {each.get("label"): each.get("data") for each in manifest.get("assertions", [])}
    receipt = assertions.get(RECEIPT_LABEL)
    return CredentialsReading(
        state=_STATES.get(store.get("validation_state", ""), "invalid"),
        label=label,
        signer=signature.get("common_name") or signature.get("issuer"),
        tool=_tool_of(manifest),
        signed_at=signature.get("time"),
        source_type=_source_type_of(assertions),
        problems=tuple(_problems_of(store)),
        receipt=receipt if isinstance(receipt, dict) else None,
    )


def _problems_of(store: Mapping[str, Any]) -> list[str]:
    """Failures of the active manifest and of what it was made from, each once: `code (what it is about)`."""
    results = store.get("validation_results") or {}
    failures = list((results.get("activeManifest") or {}).get("failure") or [])
    for ingredient in results.get("ingredientDeltas") or []:
        failures += (ingredient.get("validationDeltas") or {}).get("failure") or []
    failures += [] if failures else store.get("validation_status") or []
    return list(dict.fromkeys(f"{each.get('code')} ({_last_part(each.get('url'))})" for each in failures))


def _last_part(url: Any) -> str:
    return str(url or "the manifest").rpartition("/")[2][:100]


def _tool_of(manifest: Mapping[str, Any]) -> str | None:
    infos = manifest.get("claim_generator_info") or []
    if not infos:
        return manifest.get("claim_generator")
    return " ".join(str(infos[0][part]) for part in ("name", "version") if infos[0].get(part))


def _source_type_of(assertions: Mapping[str, Any]) -> str | None:
    """The source type of the action that made the picture; older files have it in `c2pa.actions` without a version."""
    for label in ("c2pa.actions.v2", "c2pa.actions"):
        data = assertions.get(label)
        for action in data.get("actions", []) if isinstance(data, dict) else []:
            if isinstance(action, dict) and action.get("digitalSourceType"):
                return str(action["digitalSourceType"])
    return None
