"""The LoRA library over HTTP: list, show, add by source or by upload, inspect, remove."""

from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.datastructures import FormData, UploadFile
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message

from schnell.errors import BodyTooLargeError, FieldProblem, MissingFieldError, UnreadableBodyError
from schnell.loras.entries import LibraryLora
from schnell.web.auth import SECURITY, Generator, Reader
from schnell.web.dialects.onemin_schema import error_answers
from schnell.web.fields import Fields, read_json_object
from schnell.web.lora_previews import draw_preview
from schnell.web.lora_schema import (
    ADD_BODY,
    INSPECT_BODY,
    LIST_ANSWER,
    LORA_ANSWER,
    MADE_ANSWER,
    PREVIEW_ANSWER,
    REPORT_ANSWER,
)
from schnell.web.services import services_of

router = APIRouter(
    prefix="/api/loras",
    tags=["LoRAs"],
    dependencies=SECURITY,
    responses=error_answers(400, 401, 403, 404, 409, 413, 503),
)

_MOST_JSON_BYTES: Final = 65_536


@router.get("", summary="The LoRAs that you may name", responses=LIST_ANSWER)
async def list_all(request: Request, caller: Reader) -> dict[str, Any]:
    """The team's own LoRAs, the public ones, and those that come with the model."""
    found = await services_of(request).loras.list(caller.team_id)
    return {"loras": [_show(lora) for lora in found], "total": len(found)}


@router.post("", summary="Add a LoRA", status_code=201, openapi_extra=ADD_BODY, responses=MADE_ANSWER)
async def add(request: Request, caller: Generator) -> JSONResponse:
    """Fetch a LoRA from its source, or take an uploaded file, check it, and put it into the team's library."""
    library = services_of(request).loras
    if _is_form(request):
        async with request.form(max_files=1, max_fields=4) as form:
            file = _file_in(form)
            file_name = file.filename or "lora"
            lora = await library.add_file(
                file.file,
                owner=caller.team_id,
                name=_text_in(form, "name"),
                file_name=file_name[:200],
                created_by=caller.user_name,
            )
    else:
        fields = Fields(await read_json_object(_limited(request)))
        source, name = fields.text("source", required=True), fields.text("name")
        fields.check()
        lora = await library.add(str(source), owner=caller.team_id, name=name or None, created_by=caller.user_name)
    drawing = BackgroundTask(draw_preview, services_of(request), lora, caller.team_id)
    return JSONResponse({"lora": _show(lora)}, status_code=201, background=drawing)


@router.post("/inspect", summary="What a LoRA file is", openapi_extra=INSPECT_BODY, responses=REPORT_ANSWER)
async def inspect(request: Request, caller: Generator) -> dict[str, Any]:  # noqa: ARG001 - asked for its check
    """Layout, model, layers, rank, alpha and trigger words of an uploaded file, or what is wrong with it."""
    if not _is_form(request):
        raise UnreadableBodyError("the body must be multipart/form-data with a field `file`")
    async with request.form(max_files=1, max_fields=4) as form:
        report = await services_of(request).loras.inspect(_file_in(form).file)
    return {"report": {_camel(name): value for name, value in asdict(report).items()}}


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
async def remove(request: Request, name: str, caller: Generator) -> Response:
    """Take one of the team's own LoRAs out of its library. Records of pictures that used it stay."""
    await services_of(request).loras.remove(name, caller.team_id)
    return Response(status_code=204)


def _show(lora: LibraryLora) -> dict[str, Any]:
    shown = {_camel(name): value for name, value in asdict(lora).items() if name != "owner"}
    return shown | {"public": not lora.owner, "createdAt": lora.created_at.isoformat().replace("+00:00", "Z")}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _limited(request: Request) -> Request:
    """The same request, but its body must be small: uploads alone may be large here."""
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > _MOST_JSON_BYTES:
            raise BodyTooLargeError(f"a JSON body must have at most {_MOST_JSON_BYTES} bytes; send a file as a form")
        return message

    return Request(request.scope, receive)


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _file_in(form: FormData) -> UploadFile:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise MissingFieldError(FieldProblem("file", "is required: the LoRA file"))
    return file


def _text_in(form: FormData, name: str) -> str | None:
    value = form.get(name)
    return value if isinstance(value, str) and value else None
