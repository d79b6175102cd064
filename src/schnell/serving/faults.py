"""What an exception of the engine means for the jobs at hand, and that nothing of the failed call stays in memory."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from schnell.engine.accelerator import is_out_of_memory
from schnell.engine.engine import Engine
from schnell.errors import ModelBusyError, PictureTooLargeError, SchnellError
from schnell.serving.jobs import QueuedJob
from schnell.spec import Job

log = structlog.get_logger(__name__)
ResultT = TypeVar("ResultT")

_BUSY: Final = (
    "there was no memory for this picture beside those that are drawn with it; nothing was charged. Try again"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call failed. The exception has lost its traceback, which would keep the call's tensors alive."""

    error: Exception
    is_memory: bool


class DeviceLostError(Exception):
    """The device computes no more, for nobody. `jobs` were in the call that failed."""

    def __init__(self, error: Exception, jobs: Sequence[QueuedJob[Any]]) -> None:
        super().__init__(str(error))
        self.jobs = tuple(jobs)


def attempt(
    engine: Engine, stage: str, jobs: Sequence[QueuedJob[Any]], action: Callable[[], ResultT]
) -> ResultT | Fault:
    """What a call of the engine gives, or its fault. Where memory ran out, it has been given back for another try.

    Raises:
        DeviceLostError: the device is of no use any more.
    """
    try:
        return action()
    except Exception as cause:  # noqa: BLE001 - whatever a kernel raises, the other jobs must go on
        fault = Fault(cause, is_out_of_memory(cause))
        if not isinstance(cause, SchnellError):
            # as text, here: whoever holds the exception to print it later would hold the failed call's tensors
            log.warning("a call of the engine failed", stage=stage, jobs=len(jobs), stack=traceback.format_exc())
    # after `except`, where Python holds the exception, its frames, and all that they refer to
    _let_go(fault.error)
    if fault.is_memory:
        engine.release_memory()
    elif not isinstance(fault.error, SchnellError) and not engine.is_alive():
        raise DeviceLostError(fault.error, jobs)
    return fault


def attempt_twice(
    engine: Engine, stage: str, jobs: Sequence[QueuedJob[Any]], action: Callable[[], ResultT]
) -> ResultT | Fault:
    """As `attempt`, and once more where memory ran out: what the first try has given back may be enough."""
    result = attempt(engine, stage, jobs, action)
    if isinstance(result, Fault) and result.is_memory:
        result = attempt(engine, stage, jobs, action)
    return result


def memory_error(job: Job, *, alone: bool, retry_after: float) -> SchnellError:
    """What the caller of a job is told for which no memory was found, `alone` on its device or beside others."""
    if not alone:
        return ModelBusyError(_BUSY, retry_after)
    size, loras = job.spec.size, len(job.adapters)
    beside = "" if not loras else " with one LoRA" if loras == 1 else f" with {loras} LoRAs"
    return PictureTooLargeError(
        f"a picture of {size.width}x{size.height}{beside} needs more memory than this server's device has; nothing was "
        f"charged. Ask for a smaller one{' or fewer LoRAs' if loras else ''}"
    )


def _let_go(error: BaseException | None) -> None:
    """Drop the tracebacks of an exception and of those that led to it: they refer to every frame that it passed."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
