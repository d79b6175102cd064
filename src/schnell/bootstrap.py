"""The only place that builds concrete objects. Imports are inside the functions: each command pays for its own parts."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schnell.engine.engine import Engine
    from schnell.serving.in_process import InProcessRunner
    from schnell.serving.scheduler import QueueLimits


def build_engine(model: str, *, device: str = "auto", safety: bool = True) -> "Engine":
    """The engine for a model's name or folder, without the safety check if `safety` is off.

    Raises:
        ModelFolderError: no such model here, or no such device.
    """
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model

    folder = find_model(model)
    return Engine(folder, choose_device(device), load_safety_checker() if safety else None)


def build_runner(engine: "Engine", limits: "QueueLimits | None" = None) -> "InProcessRunner":
    """A started runner over this engine, in this process."""
    from schnell.serving.active_job import LaneKey
    from schnell.serving.batch_size import BatchSizer
    from schnell.serving.in_process import InProcessRunner
    from schnell.serving.scheduler import QueueLimits, Scheduler
    from schnell.serving.worker import Worker

    sizer: BatchSizer[LaneKey] = BatchSizer()
    worker = Worker(engine, Scheduler(sizer.limit, limits=limits or QueueLimits()), sizer)
    worker.start()
    return InProcessRunner(worker)
