"""A prediction as Replicate shows it."""

from typing import Any, Final

from schnell.errors import NotFoundError
from schnell.generations import Record, Running
from schnell.web.dialects.model_list import version_id
from schnell.web.dialects.replicate.reading import as_sent
from schnell.web.dialects.translation import drawn_loras, read_base64, server_links
from schnell.web.native.records import show_time
from schnell.web.services import Services

_STATUS: Final = {"QUEUED": "starting", "PROCESSING": "processing", "SUCCESS": "succeeded", "FAILURE": "failed"}
_BAR_WIDTH: Final = 10


async def describe_prediction(
    services: Services, record: Record, running: Running | None = None, *, inline: bool = True
) -> dict[str, Any]:
    """A prediction. `inline` allows `data:` addresses in `output` where a client could not follow a link.

    The clients make files of https links and `data:` addresses only, follow no redirect, and send their token to
    whatever they open. So links lead to this server, and are given where its public address is https.
    """
    address = f"{services.config.public_url}/v1/predictions/{record.id}"
    output = await _read_output(services, record, inline=inline)
    return {
        "id": record.id,
        "model": record.model,
        "version": version_id(services),
        "input": as_sent(record),
        "logs": _write_logs(record, running),
        "output": output,
        "data_removed": record.status == "SUCCESS" and output is None,
        "error": record.error_message,
        "status": "canceled" if record.error_code == "CANCELLED" else _STATUS[record.status],
        "source": "api",
        "created_at": show_time(record.created_at),
        "started_at": show_time(record.started_at),
        "completed_at": show_time(record.finished_at),
        "metrics": _metrics_of(record),
        "urls": {"get": address, "cancel": f"{address}/cancel"},
    }


async def tell_prediction(services: Services, record: Record, running: Running | None) -> dict[str, Any]:
    """A prediction as webhooks tell of it: a message holds no pictures."""
    return await describe_prediction(services, record, running, inline=False)


def gives_links(services: Services) -> bool:
    """Whether the clients can follow a link to this server."""
    return services.config.public_url.startswith("https:")


async def _read_output(services: Services, record: Record, *, inline: bool) -> list[str] | None:
    links = server_links(services, record)
    if not links:
        return None
    if not inline or gives_links(services):
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
        done = running.progress.step
    seed = record.response_object.get("seed", record.settings["seed"])
    lines = [] if seed is None else [f"Using seed: {seed}"]
    if record.served_model:
        lines.append(f"Drawn with: {record.served_model}")
    if record.started_at is not None:
        lines += [_write_step(step, total) for step in range(done + 1)]
    lines += [f"LoRA: {each['name']} at {each['scale']:g}" for each in drawn_loras(record)]
    lines += [f"warning: {each}" for each in record.response_object.get("warnings", [])]
    return "".join(f"{line}\n" for line in lines)


def _write_step(step: int, total: int) -> str:
    # the form of a tqdm progress bar, from which the SDKs read `prediction.progress`
    bar = "█" * (step * _BAR_WIDTH // total)
    return f"{100 * step // total:3d}%|{bar:{_BAR_WIDTH}}| {step}/{total}"


def _metrics_of(record: Record) -> dict[str, Any]:
    if record.finished_at is None:
        return {}
    total = (record.finished_at - record.created_at).total_seconds()
    drawn = (record.finished_at - record.started_at).total_seconds() if record.started_at else 0.0
    return {"predict_time": round(drawn, 3), "total_time": round(total, 3), "image_count": len(record.images)} | {
        "cost": record.cost
    }
