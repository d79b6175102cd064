"""`schnell doctor`: looks at what a server needs, and says what to do about what is missing."""

import asyncio
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from schnell.cli.database import DataDir
from schnell.cli.output import AsJson, print_rows
from schnell.errors import ModelTooLargeError, SchnellError

if TYPE_CHECKING:
    from schnell.accounts.credits import Imbalance
    from schnell.assets.store import AssetStore
    from schnell.database.session import Database
    from schnell.settings import Settings

#: A change of the window counts again by itself, so what differs was changed past the server.
_COUNT_AGAIN = (
    "somebody wrote to the database past schnell: restore a backup, or count again from the ledger with "
    "`schnell teams set TEAM --budget-window WINDOW`, `schnell users set USER --team TEAM --budget-window WINDOW`"
)
_MARKS = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one thing that a server needs. `advice` says what to do about a warning or a problem."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


def doctor_command(
    data_dir: DataDir = None,
    model: Annotated[
        str | None, typer.Option(help="A model's name or folder [default: the one that is served].")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=1, help="Plan for a card with so many GB instead of this machine's device.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is here, what is missing, and what to do about it. Exits 1 when the server could not work.

    It says what the model would take of the device's memory, without loading it.
    """
    from schnell.bootstrap import read_settings

    findings = list(examine(read_settings(data_dir=data_dir, model=model), memory))
    if as_json:
        print_rows(findings, (), as_json=True)
    else:
        for each in findings:
            typer.echo(f"{_MARKS[each.state]}  {each.subject}: {each.found}")
            if each.advice:
                typer.echo(f"         → {each.advice}")
    sys.exit(any(each.state == "problem" for each in findings))


def examine(settings: "Settings", memory: float | None = None) -> Iterator[Finding]:
    """Findings about everything that a server with these settings needs, one at a time as they are made.

    `memory` is that of another card, in GB, to plan for.
    """
    yield _python()
    yield _torch()
    yield _model(settings)
    yield _memory(settings, memory)
    yield _compiling(settings)
    yield _safety(settings)
    if settings.runner == "ray":
        yield from _cluster(settings)
    yield _space(settings)
    yield from asyncio.run(_database_and_store(settings))


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", "ok", version)


def _torch() -> Finding:
    try:
        import torch
    except ImportError as cause:
        return Finding("torch", "problem", str(cause), "install it again: make setup")
    from schnell.engine.devices import choose_devices, look_at_hardware, why_unused

    hardware = look_at_hardware()
    found = f"{torch.__version__} on {', '.join(map(str, choose_devices(('auto',), hardware)))}"
    if reason := why_unused(hardware):
        return Finding("torch", "warning", found, reason)
    return Finding("torch", "ok", f"{found}, {torch.get_num_threads()} threads")


def _model(settings: "Settings") -> Finding:
    from schnell.models.catalogue import find_model

    try:
        return Finding("model", "ok", f"{settings.model} at {find_model(settings.model).path}")
    except SchnellError as error:
        return Finding("model", "problem", error.message, f"schnell models pull {settings.model}")


def _memory(settings: "Settings", memory: float | None) -> Finding:
    from schnell.bootstrap import build_plan
    from schnell.engine.memory_plan import describe

    try:
        plan = build_plan(settings, memory)
    except ModelTooLargeError as error:
        return Finding("memory", "problem", error.message, "docs/memory.md has a plan for each class of cards")
    except SchnellError as error:
        return Finding("memory", "problem", f"no plan without the model: {error.message}")
    return Finding("memory", "ok", "\n           ".join(describe(plan)))


def _compiling(settings: "Settings") -> Finding:
    """Whether the transformer's blocks would be compiled, and among which kernels attention is chosen."""
    from schnell.engine.attention_kernels import candidates
    from schnell.engine.compiler import find_missing
    from schnell.engine.devices import choose_devices, look_at_hardware
    from schnell.models.folder import compiled_home

    device = choose_devices(("auto",), look_at_hardware())[0]
    kernels = f"attention by the fastest of {', '.join(candidates())}" if device.type == "cuda" else "torch's attention"
    if settings.compile == "off" or (settings.compile == "auto" and device.type != "cuda"):
        why = "SCHNELL_COMPILE is off" if settings.compile == "off" else f"nothing is gained on {device.type}"
        return Finding("compiling", "ok", f"blocks run uncompiled, as {why}; {kernels}")
    if missing := find_missing(device):
        state: Literal["warning", "problem"] = "problem" if settings.compile == "on" else "warning"
        return Finding("compiling", state, f"blocks run uncompiled; {kernels}", missing)
    return Finding("compiling", "ok", f"blocks are compiled on {device}, programs kept in {compiled_home()}; {kernels}")


def _safety(settings: "Settings") -> Finding:
    from schnell.engine.safety import load_safety_checker

    if not settings.safety:
        advice = "unset SCHNELL_SAFETY to use open-nsfw"
        return Finding("safety", "warning", "off: pictures are not checked at all", advice)
    try:
        load_safety_checker(settings.safety, settings.safety_threshold)
    except SchnellError as error:
        return Finding("safety", "problem", error.message, "install it again: make setup")
    return Finding("safety", "ok", f"{', '.join(settings.safety)}, threshold {settings.safety_threshold}")


def _cluster(settings: "Settings") -> Iterator[Finding]:
    from schnell.bootstrap.cluster import prepare_ray

    if not settings.ray_address:
        yield Finding("cluster", "ok", "this server starts one of its own; doctor does not")
        return
    try:
        prepare_ray()
        from schnell.serving.ray_cluster import look_at_replicas

        rows = look_at_replicas(settings.ray_address)
    except SchnellError as error:
        advice = "check that Ray's head runs there, and that RAY_AUTH_TOKEN is its own; then `schnell cluster up`"
        yield Finding("cluster", "problem", error.message, advice)
        return
    if not rows and settings.replicas_min:
        yield Finding("cluster", "warning", "no replica is ready", "look at the logs of `schnell cluster up`")
    for row in rows:
        found = f"{row.queue_seconds} s of work, {row.queued} jobs wait, {row.loras} LoRAs in slots"
        if row.memory_used is not None and row.memory is not None:
            found += f", {row.memory_used / 2**30:.1f} of {row.memory / 2**30:.1f} GiB of memory in use"
        plan = "".join(f"\n           {line}" for line in row.plan)
        yield Finding(f"replica {row.replica}", "ok", f"on {row.host}: {found}{plan}")


def _space(settings: "Settings") -> Finding:
    # the data folder may not exist yet: its nearest parent that does lies on the same disk
    folder = next(each for each in (settings.data_dir, *settings.data_dir.parents) if each.exists())
    free = shutil.disk_usage(folder).free / 2**30
    if free < 1:
        return Finding(
            "disk", "warning", f"{free:.1f} GiB free in {folder}", "make room, or set SCHNELL_RETENTION_DAYS"
        )
    return Finding("disk", "ok", f"{free:.0f} GiB free in {folder}")


async def _database_and_store(settings: "Settings") -> list[Finding]:
    from schnell.bootstrap import build_database, build_store, has_data

    try:
        if not has_data(settings):
            return await _without_database(settings)
        database = build_database(settings)
    except SchnellError as error:
        return [Finding("database", "problem", error.message)]
    findings = []
    try:
        findings.append(await _database(database))
        store = build_store(settings)
        findings.extend(await _store(store))
        # both read tables, which only a migrated database has
        if findings[0].state == "ok":
            findings.extend(await _credits_and_files(database, store))
        await store.close()
    except SchnellError as error:
        findings.append(Finding("pictures", "problem", error.message))
    finally:
        await database.close()
    return findings


async def _without_database(settings: "Settings") -> list[Finding]:
    """Of a server that was never started. Whoever looks makes nothing: the folder may be mistyped."""
    from schnell.bootstrap import build_store, check_store
    from schnell.bootstrap.data import database_url

    advice = "`schnell serve` makes it; is the data folder the one that you mean?"
    findings = [Finding("database", "warning", f"{database_url(settings)}: not there yet", advice)]
    try:
        if check_store(settings).scheme == "s3":
            store = build_store(settings)
            findings.extend(await _store(store))
            await store.close()
    except SchnellError as error:
        findings.append(Finding("pictures", "problem", error.message))
    return findings


async def _database(database: "Database") -> Finding:
    from sqlalchemy.exc import SQLAlchemyError

    from schnell.database.migration import schema_is_current
    from schnell.database.outages import reason_of
    from schnell.errors import DatabaseUnavailableError

    try:
        async with database.read() as connection:
            current = await schema_is_current(connection)
    except (DatabaseUnavailableError, SQLAlchemyError) as cause:
        reason = reason_of(cause.__cause__ or cause)
        return Finding("database", "problem", f"{database.location}: {reason}", "check SCHNELL_DATABASE_URL")
    if not current:
        return Finding("database", "warning", f"{database.location}: not migrated", "`schnell serve` migrates it")
    return Finding("database", "ok", database.location)


async def _store(store: "AssetStore") -> list[Finding]:
    from schnell.assets.s3 import S3Assets

    if not isinstance(store, S3Assets):
        return [Finding("pictures", "ok", "local files")]
    try:
        await store.check()
    except SchnellError as error:
        advice = "check SCHNELL_ASSETS_URL, SCHNELL_S3_ENDPOINT and AWS_ACCESS_KEY_ID"
        return [Finding("pictures", "problem", error.message, advice)]
    if store.has_session_credentials():
        return [
            Finding(
                "pictures",
                "warning",
                "the S3 credentials are temporary: links signed with them die with their session",
                "use the keys of an IAM user, or a shorter SCHNELL_LINK_SECONDS",
            )
        ]
    return [Finding("pictures", "ok", "the bucket answers")]


def _tell(wrong: "Sequence[Imbalance]") -> str:
    budgets = (
        f"user {each.user_id} of team {each.team_id}" if each.user_id else f"team {each.team_id}" for each in wrong
    )
    told = [f"{who}: {each.counter}, not {each.ledger}" for who, each in zip(budgets, wrong, strict=True)]
    return "; ".join(told[:3])


async def _credits_and_files(database: "Database", store: "AssetStore") -> list[Finding]:
    from schnell.accounts.credits import audit
    from schnell.generations.recovery import find_orphans

    async with database.read() as connection:
        wrong = await audit(connection)
    orphans = await find_orphans(database, store)
    ledger = (
        Finding("credits", "problem", f"{len(wrong)} counters differ from the ledger: {_tell(wrong)}", _COUNT_AGAIN)
        if wrong
        else Finding("credits", "ok", "every counter is the sum of its ledger")
    )
    files = (
        Finding("orphans", "warning", f"{len(orphans)} files that no record knows", "schnell assets prune")
        if orphans
        else Finding("orphans", "ok", "every stored file has its record")
    )
    return [ledger, files]
