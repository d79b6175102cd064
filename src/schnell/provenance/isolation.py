"""Checking pictures of strangers in a process of its own, with bounds on memory and time.

A decoder that fails on hostile bytes, or takes all memory for them, ends that process and nothing else.
"""

import asyncio
import json
import os
import resource
import struct
import sys
from typing import Any, Final

from schnell.errors import ServerBusyError, UnreadablePictureError

_MEMORY_BYTES: Final = 3 << 29
#: Of processor time, and of waiting for it on a machine that draws.
_SECONDS: Final = 20
_PATIENCE_SECONDS: Final = 60
_MOST_WAITING: Final = 16
_HEADER: Final = struct.Struct(">I")


class IsolatedChecks:
    """Checks pictures, one after the other: each takes a whole core for a moment, and drawing needs the others."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    async def verify(self, data: bytes, *, roots_pem: str, thorough: bool) -> dict[str, Any]:
        """What `provenance.verification.verify` finds, as JSON.

        Raises:
            UnreadablePictureError: the bytes are no picture, or checking them took too much memory or time.
            ServerBusyError: too many others wait.
        """
        if self._waiting >= _MOST_WAITING:
            raise ServerBusyError("too many pictures wait to be checked; try again in a moment", retry_after=5)
        self._waiting += 1
        try:
            async with self._turn:
                return await _run(data, roots_pem, thorough=thorough)
        finally:
            self._waiting -= 1


async def _run(data: bytes, roots_pem: str, *, thorough: bool) -> dict[str, Any]:
    options = json.dumps({"roots_pem": roots_pem, "thorough": thorough}).encode()
    # one thread of arithmetic, and none of the server's secrets, which it holds in its environment
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SCHNELL_", "AWS_"))}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schnell.provenance.isolation"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            answer, _ = await child.communicate(_HEADER.pack(len(options)) + options + data)
    except TimeoutError as cause:
        raise UnreadablePictureError("checking this picture takes too long") from cause
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _answer_of(answer)


def _answer_of(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError as cause:
        # it was killed by its bounds, or a decoder crashed
        raise UnreadablePictureError(
            "this picture cannot be checked: it is damaged, or takes too much memory"
        ) from cause
    if "error" in found:
        raise UnreadablePictureError(found["error"])
    result: dict[str, Any] = found
    return result


def main() -> None:
    """The process: options and a picture on standard input, JSON on standard output."""
    _bound()
    from schnell.provenance.verification import verify

    stream = sys.stdin.buffer
    options = json.loads(stream.read(_HEADER.unpack(stream.read(_HEADER.size))[0]))
    try:
        answer = verify(stream.read(), **options).to_json()
    except UnreadablePictureError as cause:
        answer = {"error": cause.message}
    except MemoryError:
        answer = {"error": "checking this picture takes too much memory"}
    sys.stdout.write(json.dumps(answer))


def _bound() -> None:
    for kind, most in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_CORE, 0),
        # nothing is written to disk
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    # behind everything that draws
    os.nice(5)


if __name__ == "__main__":
    main()
