"""A record as Replicate's prediction, with the log lines that its clients draw a progress bar from."""

from datetime import datetime
from typing import Any, Final

from schnell.errors import NotFoundError
from schnell.generations import (Record, Running)
from schnell.web.dialects.replicate_schema import (REPLICATE_RATIOS, version_id)
from schnell.web.dialects.translation import read_base64
from schnell.web.native.records import show_time
from schnell.web.operations.files import picture_links
from schnell.web.services import Services

_STATUS: Final = {"QUEUED": "starting", "PROCESSING": "processing", "SUCCESS": "succeeded", "FAILURE": "failed"}
_BAR: Final = 10


async def describe_prediction(
    services: Services, record: Record, running: Running | None = None, *, inline: bool = True
) -> dict[str, Any]:
    """A prediction. `inline` puts the pictures themselves into it wherever a client could not follow a link.

    The clients make files of https links and `data:` addresses only, follow no redirect, and send their token to
    whatever they open: so a link leads to this server, and is given where this server is reached by https.
    """
    address = f"{services.config.public_url}/v1/predictions/{record.id}"
    output = await _read_output(services, record, inline=inline)
    return {
        "id": record.id,
        "model": record.model,
        "version": version_id(services),
        "input": _show_input(record),
        "logs": _write_logs(record, running),
        "output": output,
        "data_removed": record.status == "SUCCESS" and output is None,
        "error": record.error_message,
        "status": "canceled" if record.error_code == "CANCELLED" else _STATUS[record.status],
        "source": "api",
        "created_at": show_time(record.created_at),
        "started_at": show_time(record.started_at),
        "completed_at": show_time(record.finished_at),
        "metrics": _measure(record),
        "urls": {"get": address, "cancel": f"{address}/cancel"},
    }


def _show_input(record: Record) -> dict[str, Any]:
    """The input as it was sent: a shape that the native API has no name for gets its name back."""
    values = dict(record.prompt_object)
    if record.dialect != "replicate" or values.get("aspect_ratio") != "custom":
        return values
    parts = 2 if str(values.get("megapixels")) == "0.25" else 1
    sides = (values["width"] * parts, values["height"] * parts)
    name = next((ratio for ratio, size in REPLICATE_RATIOS.items() if (size.width, size.height) == sides), None)
    if name is None:
        return values
    return {key: value for key, value in values.items() if key not in {"width", "height"}} | {"aspect_ratio": name}


async def _read_output(services: Services, record: Record, *, inline: bool) -> list[str] | None:
    links = picture_links(services, record)
    if not links:
        return None
    if not inline or services.config.public_url.startswith("https:"):
        return links
    try:
        pictures = await read_base64(services, record)
    except NotFoundError:
        return None
    media_types = [image.media_type for image in record.images]
    return [f"data:{kind};base64,{picture}" for kind, picture in zip(media_types, pictures, strict=True)]


def _write_logs(record: Record, running: Running | None) -> str:
    total = record.settings["steps"]
    done = 0
    if record.status == "SUCCESS":
        done = total
    elif running is not None:
        done = total if running.progress.stage == "decode" else running.progress.step
    seed = record.response_object.get("seed", record.settings["seed"])
    lines = [] if seed is None else [f"Using seed: {seed}"]
    if record.served_model:
        lines.append(f"Drawn with: {record.served_model}")
    if record.started_at is not None:
        lines += [_write_step(step, total) for step in range(done + 1)]
    lines += [f"warning: {each}" for each in record.response_object.get("warnings", [])]
    return "".join(f"{line}\n" for line in lines)


def _write_step(step: int, total: int) -> str:
    # the form of a tqdm bar, which is what the SDKs' `prediction.progress` reads
    bar = "█" * (step * _BAR // total)
    return f"{100 * step // total:3d}%|{bar:{_BAR}}| {step}/{total}"


def _measure(record: Record) -> dict[str, Any]:
    if record.finished_at is None:
        return {}
    total = _seconds(record.created_at, record.finished_at)
    drawn = _seconds(record.started_at, record.finished_at) if record.started_at else 0.0
    return {"predict_time": drawn, "total_time": total, "image_count": len(record.images)}


def _seconds(start: datetime, end: datetime) -> float:
    return round((end - start).total_seconds(), 3)
