"""The engine and its runner, out of settings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schnell.engine.engine import Engine
    from schnell.generations import Runner
    from schnell.serving.runner import InProcessRunner
    from schnell.settings import Settings


def build_engine(model: str, *, device: str = "auto", safety: bool = True) -> "Engine":
    """The engine for a model's name or folder, without the safety check if `safety` is off.

    Raises:
        ModelFolderError: no such model here, or no such device.
    """
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.network_classes import import_network_classes
    from schnell.engine.processors import fit_threads_to_quota
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model

    folder = find_model(model)
    fit_threads_to_quota()
    import_network_classes()
    return Engine(folder, choose_device(device), load_safety_checker() if safety else None)


def build_runner(engine: "Engine") -> "InProcessRunner":
    """A runner over this engine in this process, its worker thread started."""
    from schnell.serving.batch_size import BatchSizer
    from schnell.serving.queue import JobQueue
    from schnell.serving.runner import InProcessRunner
    from schnell.serving.worker import LaneKey, Worker

    # one for both: the worker reports how long steps took, the queue asks how large a batch may be
    sizer: BatchSizer[LaneKey] = BatchSizer()
    worker = Worker(engine, JobQueue(sizer.limit, engine.adapter_slots), sizer)
    worker.start()
    return InProcessRunner(worker)


def build_server_runner(settings: "Settings") -> "Runner":
    """The server's runner: the engine with the operator's model and safety classifiers, loaded and started.

    Raises:
        ModelFolderError, SafetyUnavailableError: the model or a classifier cannot be loaded.
    """
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.network_classes import import_network_classes
    from schnell.engine.processors import fit_threads_to_quota
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model

    fit_threads_to_quota()
    import_network_classes()
    safety = load_safety_checker(settings.safety, settings.safety_threshold) if settings.safety else None
    engine = Engine(find_model(settings.model), choose_device(settings.device), safety)
    runner = build_runner(engine)
    runner.warm_up()
    return runner
