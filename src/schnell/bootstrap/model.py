"""The engine and its runner, out of settings."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from schnell.bootstrap.memory import build_quantized_files, target_on, wishes_of

if TYPE_CHECKING:
    from schnell.engine.engine import Engine
    from schnell.generations import Runner
    from schnell.serving.runner import InProcessRunner
    from schnell.settings import Settings


def build_engine(model: str, *, device: str = "auto", safety: bool = True) -> "Engine":
    """The engine for a model's name or folder, without the safety check if `safety` is off.

    It runs in the form that the memory plan chooses by itself.

    Raises:
        ModelFolderError: no such model here, or no such device.
        ModelTooLargeError: the model does not fit into the device's memory.
    """
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.memory_plan import make_plan
    from schnell.engine.network_classes import import_network_classes
    from schnell.engine.network_sizes import read_network_sizes
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model

    folder, chosen = find_model(model), choose_device(device)
    form = make_plan(read_network_sizes(folder), target_on(chosen)).form
    import_network_classes()
    checker = load_safety_checker() if safety else None
    return Engine(folder, chosen, checker, form=form, files=build_quantized_files())


def build_runner(engine: "Engine") -> "InProcessRunner":
    """A runner over this engine in this process, its worker thread started."""
    from schnell.serving.batch_size import BatchSizer
    from schnell.serving.queue import JobQueue
    from schnell.serving.runner import InProcessRunner
    from schnell.serving.worker import LaneKey, Worker

    # one for both: the worker reports how long steps took, the queue asks how large a batch may be
    sizer: BatchSizer[LaneKey] = BatchSizer()

    def limit(lane: LaneKey) -> int:
        return min(sizer.limit(lane), engine.most_rows(lane.tokens))

    worker = Worker(engine, JobQueue(limit, engine.adapter_slots), sizer)
    worker.start()
    return InProcessRunner(worker)


def build_server_runner(settings: "Settings", tell: Callable[[str], object]) -> "Runner":
    """The server's runner: the engine with the operator's model and safety classifiers, loaded and started.

    `tell` is given the lines of the memory plan before anything is loaded.

    Raises:
        ModelFolderError, SafetyUnavailableError: the model or a classifier cannot be loaded.
        ModelTooLargeError: the model does not fit into the device's memory in the form that the settings ask for.
    """
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.memory_plan import describe, make_plan
    from schnell.engine.network_classes import import_network_classes
    from schnell.engine.network_sizes import read_network_sizes
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model

    folder, device = find_model(settings.model), choose_device(settings.device)
    plan = make_plan(read_network_sizes(folder), target_on(device), wishes_of(settings))
    for line in describe(plan):
        tell(line)
    import_network_classes()
    safety = load_safety_checker(settings.safety, settings.safety_threshold) if settings.safety else None
    files = build_quantized_files() if settings.keep_quantized else None
    engine = Engine(folder, device, safety, form=plan.form, files=files)
    runner = build_runner(engine)
    runner.warm_up()
    return runner
