"""What others need to check our pictures: the root certificates, and credentials found again by a picture's mark.

The lookups have the form of C2PA's Soft Binding Resolution API (https://spec.c2pa.org, version 2.4).
"""

import asyncio
import base64
import binascii
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from schnell.errors import FieldProblem, InvalidFieldError, NotFoundError
from schnell.generations.lookup import find_by_manifest, find_by_mark
from schnell.provenance.file_parts import without_credentials
from schnell.provenance.mark import SCHEME
from schnell.web.native.verification import count_visitor
from schnell.web.openapi import TEXT, error_answers, example_of, json_answer, object_of
from schnell.web.services import services_of

router = APIRouter(prefix="/.well-known/schnell", tags=["proof"])
_MARK_BYTES: Final = 5
#: Told in the OpenAPI document only: our own refusal says more than that of a pattern.
_VALUE: Final = "^[A-Za-z0-9+/]{7}=$"
_MATCHES: Final = object_of({"matches": {"type": "array", "items": object_of({"manifestId": TEXT, "endpoint": TEXT})}})
_EXAMPLE: Final = {
    "matches": [
        {
            "manifestId": "urn:c2pa:4769380b-654a-4d99-903f-ad32ab037e50",
            "endpoint": "https://pictures.example/.well-known/schnell",
        }
    ]
}
_KIND: Final = {"type": "array", "items": object_of({"alg": TEXT})}
_KINDS: Final = object_of({"watermarks": _KIND, "fingerprints": _KIND})
_ALGORITHMS: Final = {"watermarks": [{"alg": SCHEME}], "fingerprints": []}


class _Pem(Response):
    media_type = "application/x-pem-file"


class _ManifestStore(Response):
    media_type = "application/c2pa"


@router.get(
    "/root.pem",
    summary="Root certificates",
    response_class=_Pem,
    responses=error_answers(404) | {200: {"content": {"application/x-pem-file": {}}, "description": "PEM"}},
)
async def root(request: Request) -> Response:
    """The certificates that vouch for this server's signature; whoever trusts them can check its pictures."""
    signer = services_of(request).signer
    if signer is None:
        raise NotFoundError("this server does not sign pictures")
    return _Pem(signer.keys.roots_pem())


@router.get(
    "/services/supportedAlgorithms",
    summary="Marks that can be looked up",
    responses={200: json_answer("By kind", example_of(_KINDS, _ALGORITHMS))},
)
async def supported_algorithms() -> dict[str, Any]:
    """The one kind of mark that this server writes."""
    return _ALGORITHMS


@router.get(
    "/matches/byBinding",
    summary="Credentials by a picture's mark",
    responses=error_answers(400, 429, 503) | {200: json_answer("Their ids", example_of(_MATCHES, _EXAMPLE))},
)
async def matches_by_binding(
    request: Request,
    alg: Annotated[str, Query(description="The kind of mark.", json_schema_extra={"enum": [SCHEME]})],
    value: Annotated[
        str,
        Query(description="What the mark carries: its five bytes in base64.", json_schema_extra={"pattern": _VALUE}),
    ],
    max_results: Annotated[int, Query(alias="maxResults", ge=1, le=20)] = 10,
) -> dict[str, Any]:
    """The ids of the credentials of the pictures that carry this mark. Two may share one, so it is a list."""
    await count_visitor(request)
    if alg != SCHEME:
        raise InvalidFieldError(FieldProblem("alg", f"must be {SCHEME}, the one kind of mark that is written here"))
    services = services_of(request)
    async with services.database.read() as connection:
        found = await find_by_mark(connection, _read_mark(value))
    endpoint = f"{services.config.public_url}{router.prefix}"
    labels = [each.manifest for each in found if each.manifest][:max_results]
    return {"matches": [{"manifestId": label, "endpoint": endpoint} for label in labels]}


@router.get(
    "/manifests/{manifest_id}",
    summary="Credentials by their id",
    response_class=_ManifestStore,
    responses=error_answers(404, 429, 503)
    | {200: {"content": {"application/c2pa": {}}, "description": "A C2PA manifest store"}},
)
async def manifest(request: Request, manifest_id: str) -> Response:
    """The credentials of a picture whose file has lost them, signed again, without prompt, seed and LoRAs."""
    await count_visitor(request)
    services = services_of(request)
    if services.signer is None:
        raise NotFoundError("this server does not sign pictures")
    async with services.database.read() as connection:
        found = await find_by_manifest(connection, manifest_id)
    data = without_credentials(await services.store.get(found.key))
    arguments = (data, found.media_type, found.receipt, manifest_id)
    signed = await asyncio.to_thread(services.signer.manifest_for, *arguments)
    return _ManifestStore(signed)


def _read_mark(value: str) -> str:
    try:
        number = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        number = b""
    if len(number) != _MARK_BYTES:
        raise InvalidFieldError(FieldProblem("value", f"must be {_MARK_BYTES} bytes in base64"))
    return number.hex()
