"""The LoRA library over HTTP, and the sites that LoRAs come from with a team's own tokens for them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, status
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.datastructures import FormData, UploadFile
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message

from schnell.accounts.administration import record_lora, record_token
from schnell.accounts.audit import actor_of
from schnell.accounts.identity import Caller
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.errors import BodyTooLargeError, FieldProblem, ForbiddenError, MissingFieldError, UnreadableBodyError
from schnell.loras.repository import PUBLIC, Labels, LibraryLora, LoraNote
from schnell.loras.tokens import SITES, TokenNote, read_site
from schnell.validation import Like
from schnell.web import submission
from schnell.web.auth import Administrator, Generator, Reader
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.lora_schema import (
    ADD_BODY,
    INSPECT_BODY,
    LIST_ANSWER,
    LORA_ANSWER,
    MADE_ANSWER,
    MAX_LABEL_LENGTH,
    MAX_TRIGGER_WORDS,
    PREVIEW_ANSWER,
    REPORT_ANSWER,
    SITES_ANSWER,
)
from schnell.web.openapi import KeyedRoute, error_answers
from schnell.web.services import services_of

router = APIRouter(
    prefix="/api/loras",
    tags=["LoRAs"],
    route_class=KeyedRoute,
    responses=error_answers(400, 401, 402, 403, 404, 409, 413, 429, 503),
)
_MAX_JSON_BYTES: Final = 65_536
_MAX_FIELD_BYTES: Final = 16_384


@router.get("", summary="The LoRAs that you may name", responses=LIST_ANSWER)
async def list_all(request: Request, caller: Reader) -> dict[str, Any]:
    """The team's own LoRAs, the public ones, and those that come with the model."""
    found = await services_of(request).loras.list(caller.team_id)
    return {"loras": [_show(lora) for lora in found], "total": len(found)}


@router.post("", summary="Add a LoRA", status_code=201, openapi_extra=ADD_BODY, responses=MADE_ANSWER)
async def add(request: Request, caller: Generator) -> JSONResponse:
    """Fetch a LoRA from its source, or take an uploaded file, check it, and put it into the team's library."""
    services = services_of(request)
    library = services.loras
    await submission.check_may_add(request, caller)
    if _is_form(request):
        async with _receiving(request, caller, 8) as form:
            fields = Fields(_read_form(form))
            labels, owner = read_labels(fields), read_owner(fields, caller)
            file = _file_in(form)
            fields.check()
            file_name = (file.filename or "lora")[:200]
            lora = await library.add_file(
                file.file,
                owner=owner,
                labels=labels,
                file_name=file_name,
                created_by=caller.user_name,
                note=note_of(caller, "lora.added", owner),
            )
    else:
        fields = Fields(await read_json_object(_limited(request), '{"source": …}'))
        source = fields.text("source", required=True)
        labels, owner = read_labels(fields), read_owner(fields, caller)
        fields.check()
        note = note_of(caller, "lora.added", owner)
        lora = await library.add(str(source), owner=owner, labels=labels, created_by=caller.user_name, note=note)
    services.lora_previews.ask_for(lora)
    return JSONResponse({"lora": _show(lora)}, status_code=201)


@router.post("/inspect", summary="What a LoRA file is", openapi_extra=INSPECT_BODY, responses=REPORT_ANSWER)
async def inspect(request: Request, caller: Generator) -> dict[str, Any]:
    """Layout, model, layers, rank, alpha and trigger words of an uploaded file, or what is wrong with it."""
    if not _is_form(request):
        raise UnreadableBodyError("the body must be multipart/form-data with a field `file`")
    services = services_of(request)
    await submission.check_may_add(request, caller)
    async with _receiving(request, caller, 4) as form:
        report = await services.loras.inspect(_file_in(form).file, caller.team_id)
    return {"report": {to_camel(name): value for name, value in asdict(report).items()}}


@router.get("/{name}", summary="One LoRA", responses=LORA_ANSWER)
async def show(request: Request, name: str, caller: Reader) -> dict[str, Any]:
    """A LoRA by its name or id."""
    return {"lora": _show(await services_of(request).loras.show(name, caller.team_id))}


@router.get(
    "/{name}/preview", summary="A LoRA's preview picture", response_class=FileResponse, responses=PREVIEW_ANSWER
)
async def preview(request: Request, name: str, caller: Reader) -> FileResponse:
    """A WebP picture drawn with the LoRA when it was added; there is none until it is drawn."""
    path = await services_of(request).loras.find_preview(name, caller.team_id)
    return FileResponse(path, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


@router.delete("/{name}", summary="Remove a LoRA", status_code=204)
async def remove(
    request: Request,
    name: str,
    caller: Generator,
    public: Annotated[bool, Query(description="The public one; needs the scope operator.")] = False,
) -> Response:
    """Take one of the team's own LoRAs out of its library. Records of pictures that used it stay."""
    owner = _owner(caller, public=public)
    await services_of(request).loras.remove(name, owner, note_of(caller, "lora.removed", owner))
    return Response(status_code=204)


def _owner(caller: Caller, *, public: bool) -> str:
    if public and not caller.is_operator:
        raise ForbiddenError("only an operator of the server may change the public LoRAs, which every team sees")
    return PUBLIC if public else caller.team_id


def read_owner(fields: Fields, caller: Caller) -> str:
    """Whose LoRA a request adds: the team's, or everybody's with `public`. Raises ForbiddenError without the scope."""
    return _owner(caller, public=fields.flag("public", default=False))


def note_of(caller: Caller, action: str, owner: str) -> LoraNote | None:
    """What writes into the audit log that an operator changed the public LoRAs; None for a team's own."""
    if owner != PUBLIC:
        return None

    async def note(connection: Connection, lora: LibraryLora) -> None:
        await record_lora(connection, actor_of(caller), action, lora.name, lora_id=lora.id, owner=lora.owner)

    return note


def read_labels(fields: Fields) -> Labels:
    """Name, trigger words and licence as a request gives them; what is wrong is noted in `fields`."""
    words = fields.raw("triggerWords")
    words = [] if words is None else words
    if not isinstance(words, list) or len(words) > MAX_TRIGGER_WORDS or not all(map(_is_label, words)):
        limits = f"up to {MAX_TRIGGER_WORDS} words of 1-{MAX_LABEL_LENGTH} characters"
        fields.refuse("triggerWords", f"must be a list of {limits}")
        words = []
    licence = fields.text("licence")
    if licence and not _is_label(licence):
        fields.refuse("licence", f"must have 1-{MAX_LABEL_LENGTH} printable characters")
    return Labels(fields.text("name") or None, tuple(words), licence or None)


def _is_label(text: object) -> bool:
    return isinstance(text, str) and 1 <= len(text) <= MAX_LABEL_LENGTH and text.isprintable()


def _read_form(form: FormData) -> dict[str, Any]:
    """A form's text fields as the JSON body would have them: words as a list, `public` as a boolean."""
    values: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str) and value}
    if "triggerWords" in values:
        values["triggerWords"] = [word.strip() for word in values["triggerWords"].split(",") if word.strip()]
    if values.get("public") in {"true", "false"}:
        values["public"] = values["public"] == "true"
    return values


def _show(lora: LibraryLora) -> dict[str, Any]:
    shown = {to_camel(name): value for name, value in asdict(lora).items() if name != "owner"}
    return shown | {"public": not lora.owner, "createdAt": lora.created_at.isoformat().replace("+00:00", "Z")}


def _limited(request: Request) -> Request:
    """The same request with a body of at most 64 KiB: this path's own limit is that of uploaded LoRA files."""
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > _MAX_JSON_BYTES:
            raise BodyTooLargeError(f"a JSON body must have at most {_MAX_JSON_BYTES} bytes; send a file as a form")
        return message

    return Request(request.scope, receive)


@asynccontextmanager
async def _receiving(request: Request, caller: Caller, fields: int) -> AsyncIterator[FormData]:
    """The form of an upload, read when it is the team's turn and the disk has room: one file, and some short fields."""
    services = services_of(request)
    length = request.headers.get("content-length", "")
    services.loras.check_space(int(length) if length.isdigit() and len(length) < 16 else 0)
    form = request.form(max_files=1, max_fields=fields, max_part_size=_MAX_FIELD_BYTES)
    async with services.uploads.take(caller.team_id), form as found:
        yield found


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _file_in(form: FormData) -> UploadFile:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise MissingFieldError(FieldProblem("file", "is required: the LoRA file"))
    return file


sites_router = APIRouter(
    prefix="/api/lora-sources",
    tags=["LoRAs"],
    route_class=KeyedRoute,
    responses=error_answers(400, 401, 403, 404),
)


class Token(BaseModel):
    """A token of Hugging Face, Civitai or Replicate."""

    model_config = ConfigDict(strict=True)
    token: Annotated[
        str,
        Field(min_length=1, max_length=500, examples=["hf_..."]),
        Like(r"[!-~]+", "must be the token alone, without spaces or line breaks"),
    ]


@sites_router.get("", summary="Sites that LoRAs come from", responses=SITES_ANSWER)
async def list_sites(request: Request, caller: Reader) -> dict[str, Any]:
    """Each site, and whether the team has a token of its own for it."""
    own = await services_of(request).source_tokens.sites_of(caller.team_id)
    return {"sites": [{"site": site, "hasToken": site in own} for site in SITES]}


@sites_router.put("/{site}/token", summary="Set the team's token", status_code=status.HTTP_204_NO_CONTENT)
async def keep_token(request: Request, caller: Administrator, site: str, body: Token) -> None:
    """Fetch this team's private and gated LoRAs with its own token from now on. For administrators."""
    known = read_site(site)
    note = _token_note(caller, "source-token.set", known)
    await services_of(request).source_tokens.keep(caller.team_id, known, body.token, now(), note)


@sites_router.delete("/{site}/token", summary="Remove the team's token", status_code=status.HTTP_204_NO_CONTENT)
async def forget_token(request: Request, caller: Administrator, site: str) -> None:
    """Forget it. What was fetched with it is not found any more."""
    known = read_site(site)
    note = _token_note(caller, "source-token.removed", known)
    await services_of(request).source_tokens.forget(caller.team_id, known, note)


def _token_note(caller: Caller, action: str, site: str) -> TokenNote:
    return lambda connection: record_token(connection, actor_of(caller), action, site, caller.team_id)
