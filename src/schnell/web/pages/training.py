"""Training a LoRA in the browser: pictures and captions in, progress with samples, into the team's library."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.datastructures import FormData, UploadFile
from starlette.responses import FileResponse, Response

from schnell.errors import ConflictError, UnreadableBodyError
from schnell.loras.trainings import ENDED, MOST_PICTURES, LoraTrainings, Training, TrainingPicture, TrainingWish
from schnell.web import submission
from schnell.web.auth import Generator, Reader
from schnell.web.fields import Fields
from schnell.web.pages.site import find_caller, page, sign_in_first
from schnell.web.services import services_of

router = APIRouter(prefix="/train")
_MOST_FIELD_BYTES: Final = 16_384
_PREVIEW_SECONDS: Final = 3600


@router.get("")
async def show_page(request: Request) -> Response:
    """The page, with the team's last training if there is one."""
    caller = await find_caller(request)
    if caller is None:
        return sign_in_first(request)
    trainings = services_of(request).trainings
    trainings.check_offered()
    latest = trainings.latest(caller.team_id)
    return page(
        request,
        "train.html",
        caller,
        may_train="generate" in caller.scopes,
        most_minutes=trainings.most_minutes,
        most_pictures=MOST_PICTURES,
        training=describe(latest) if latest else None,
    )


@router.post("", status_code=202)
async def start(request: Request, caller: Generator) -> dict[str, Any]:
    """Begin a training: a form with `trigger`, `name`, `minutes`, files `pictures` and, in their order, `captions`."""
    services = services_of(request)
    await submission.check_may_add(request, caller)
    await _check_free(request, services.trainings)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UnreadableBodyError("the body must be multipart/form-data with files `pictures`")
    form = request.form(max_files=MOST_PICTURES, max_fields=MOST_PICTURES + 8, max_part_size=_MOST_FIELD_BYTES)
    async with services.uploads.take(caller.team_id), form as found:
        fields = Fields(_texts(found))
        trigger = fields.text("trigger", required=True)
        minutes = _read_minutes(fields)
        fields.check()
        wanted = TrainingWish(str(trigger).strip(), fields.text("name") or None, minutes)
        # while the form is open: its files lie on the disk, and are copied from there
        started = await services.trainings.start(caller.team_id, caller.user_name, wanted, _read_pictures(found))
    return describe(started)


@router.get("/{training_id}")
async def progress(request: Request, caller: Reader, training_id: str) -> dict[str, Any]:
    """How far a training of the team is."""
    return describe(services_of(request).trainings.find(caller.team_id, training_id))


@router.post("/{training_id}/cancel")
async def cancel(request: Request, caller: Generator, training_id: str) -> dict[str, Any]:
    """Stop a training."""
    return describe(await services_of(request).trainings.cancel(caller.team_id, training_id))


@router.get("/{training_id}/samples/{name}")
async def sample(request: Request, caller: Reader, training_id: str, name: str) -> FileResponse:
    """A sheet of sample pictures, drawn on the way."""
    path = services_of(request).trainings.sample(caller.team_id, training_id, name)
    headers = {"Cache-Control": f"private, max-age={_PREVIEW_SECONDS}"}
    return FileResponse(path, media_type="image/webp", headers=headers)


def describe(training: Training) -> dict[str, Any]:
    """A training as the page's script reads it."""
    return {
        "id": training.id,
        "name": training.name,
        "trigger": training.trigger,
        "stage": training.stage,
        "done": training.done,
        "message": training.message,
        "lora": training.lora,
        "ended": training.stage in ENDED,
        "samples": [f"/train/{training.id}/samples/{name}" for name in training.samples],
    }


async def _check_free(request: Request, trainings: LoraTrainings) -> None:
    """Refuse a training before its pictures are kept anywhere."""
    try:
        trainings.check_free()
    except ConflictError:
        # the body is dropped piece by piece: a browser that is answered while it still sends may not see the answer
        async for _ in request.stream():
            pass
        raise


def _texts(form: FormData) -> Mapping[str, Any]:
    return {name: value for name, value in form.items() if isinstance(value, str) and value and name != "captions"}


def _read_minutes(fields: Fields) -> float:
    try:
        return float(fields.text("minutes", required=True) or 0)
    except ValueError:
        fields.refuse("minutes", "must be a number of minutes, such as 5")
        return 0.0


def _read_pictures(form: FormData) -> list[TrainingPicture]:
    captions = [each for each in form.getlist("captions") if isinstance(each, str)]
    files = [each for each in form.getlist("pictures") if isinstance(each, UploadFile)]
    captions += [""] * (len(files) - len(captions))
    return [
        TrainingPicture(file.filename or "", file.file, caption) for file, caption in zip(files, captions, strict=False)
    ]
