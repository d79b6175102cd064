"""What every dialect does with a parsed request: count it, start it, and wait for it or follow it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager

from starlette.requests import Request

from schnell.accounts.credits import check_credits
from schnell.accounts.identity import Caller
from schnell.errors import ClientGoneError, SchnellError
from schnell.generations import GenerationRequest, Quote, Record, Running
from schnell.spec import Progress
from schnell.web.response_headers import MODEL_HEADER, add_cost, add_headers, header_text, rate_headers
from schnell.web.services import services_of


def idempotency_key_in(request: Request) -> str | None:
    """The request's `Idempotency-Key`, if any."""
    return request.headers.get("idempotency-key")


async def quote(request: Request, caller: Caller, asked: GenerationRequest) -> Quote:
    """What the request would cost and how long it would wait; nothing is done.

    Raises:
        SchnellError: it would be refused.
    """
    return await services_of(request).generations.quote(caller, asked)


async def start(request: Request, caller: Caller, asked: GenerationRequest) -> Running | str:
    """Accept a generation, within the key's rate limit.

    Gives the generation under way; for a request whose `Idempotency-Key` was used before, the id of the record that
    answers it.

    Raises:
        SchnellError: it is refused, and nothing was charged.
    """
    services = services_of(request)
    try:
        await count_request(request, caller, asked.dialect)
        add_headers(request, {MODEL_HEADER: services.model.label})
        started = await services.generations.start(caller, asked)
    except SchnellError as error:
        services.metrics.count_refusal(asked.dialect, error)
        raise
    if isinstance(started, Running):
        add_cost(request, started.record.cost, services.config.credit_value)
    return started


async def count_request(request: Request, caller: Caller, dialect: str = "onemin") -> None:
    """Count a request against the key's rate limit, and tell in the answer's headers what is left of it.

    Raises:
        RateLimitedError: nothing is left.
    """
    status = await services_of(request).rates.count(caller)
    # these headers are set before the request can be refused: an error carries them too
    if status is not None:
        add_headers(request, rate_headers(dialect).write(status.limit, status.remaining, status.reset_after))


async def check_may_add(request: Request, caller: Caller) -> None:
    """Let a caller have a LoRA fetched, converted or inspected, which costs nothing but is work.

    It counts as a request, and needs the credits of one picture.

    Raises:
        RateLimitedError, InsufficientCreditsError: the caller may not.
    """
    services = services_of(request)
    await count_request(request, caller)
    async with services.database.read() as connection:
        await check_credits(connection, caller, services.generations.least_price)


@asynccontextmanager
async def drawn(request: Request, caller: Caller, asked: GenerationRequest) -> AsyncIterator[Record]:
    """The finished record of a generation, for a block that builds the answer.

    A closed connection cancels the generation, unless it has an `Idempotency-Key`.

    Raises:
        SchnellError: it is refused, or it fails; nothing was charged.
        ClosingError: it has ended, but the database does not take its end yet.
    """
    started = await start(request, caller, asked)
    async with answering(request, caller, asked, started), _until_disconnected(request) as disconnected:
        record = await _wait(request, caller, started, disconnected)
        add_record_headers(request, record)
        yield record
        # a turn of the event loop, to hear of a connection that was closed while the answer was built
        await asyncio.sleep(0)
        if disconnected.done():
            raise ClientGoneError


@asynccontextmanager
async def answering(
    request: Request, caller: Caller, asked: GenerationRequest, started: Running | str
) -> AsyncIterator[None]:
    """The block builds the answer to an accepted generation, and sends it where that is a stream.

    If it is left by an exception (also the one that ends a stream whose client is gone), the same request may be sent
    again within a minute without being charged again.
    """
    try:
        yield
    except BaseException:
        services_of(request).generations.leave_unanswered(caller, asked, started)
        raise


def add_record_headers(request: Request, record: Record) -> None:
    """Say in the answer's headers which model drew this record, and what it costs."""
    if record.served_model:
        add_headers(request, {MODEL_HEADER: header_text(record.served_model)})
    add_cost(request, record.cost, services_of(request).config.credit_value)


async def find_started(request: Request, caller: Caller, started: Running | str) -> Record:
    """The record of an accepted generation as it is now."""
    if isinstance(started, Running):
        return started.record
    return await services_of(request).history.find(caller, started)


async def follow(request: Request, caller: Caller, started: Running | str) -> AsyncGenerator[Progress | Record, None]:
    """Every progress report of an accepted generation, then its finished record.

    Closing the generator early cancels the generation, unless it is detached.

    Raises:
        SchnellError: it failed.
    """
    if isinstance(started, str):
        yield await services_of(request).history.wait(caller, started)
        return
    with started.attended():
        async with aclosing(started.follow()) as steps:
            async for progress in steps:
                yield progress
        yield await started.ended()


async def _wait(request: Request, caller: Caller, started: Running | str, disconnected: "asyncio.Task[None]") -> Record:
    """The record once it has ended, or ClientGoneError once the connection is closed."""
    if isinstance(started, str):
        return await _unless_disconnected(disconnected, services_of(request).history.wait(caller, started))
    # leaving `attended()` cancels a generation that nobody else waits for
    with started.attended():
        return await started.ended(disconnected)


async def _unless_disconnected(disconnected: "asyncio.Task[None]", waiting: Awaitable[Record]) -> Record:
    work = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({work, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGoneError
        return work.result()
    finally:
        # as above: whoever waits leaves, too
        work.cancel()


@asynccontextmanager
async def _until_disconnected(request: Request) -> AsyncIterator["asyncio.Task[None]"]:
    """A task for the block that ends when the connection is closed."""
    disconnected = asyncio.create_task(_wait_for_disconnect(request))
    try:
        yield disconnected
    finally:
        disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    # the body was read before: what the server sends now is the end of the connection
    while (await request.receive())["type"] != "http.disconnect":
        pass
