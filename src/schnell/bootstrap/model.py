"""The engine and its runner, out of settings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schnell.engine.engine import Engine
    from schnell.generations import Runner
    from schnell.provenance.proof import Proof
    from schnell.serving.runner import InProcessRunner
    from schnell.settings import Settings


def build_engine(model: str, *, device: str = "auto", safety: bool = True, proof: "Proof | None" = None) -> "Engine":
    """The engine for a model's name or folder, without the safety check if `safety` is off.

    Without `proof`, its pictures are neither marked nor signed.

    Raises:
        ModelFolderError: no such model here, or no such device.
    """
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.network_classes import import_network_classes
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model
    from schnell.provenance.proof import NO_PROOF

    folder = find_model(model)
    import_network_classes()
    checker = load_safety_checker() if safety else None
    return Engine(folder, choose_device(device), checker, proof=proof or NO_PROOF)


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
        CredentialsError: the key that signs pictures cannot be used.
    """
    from schnell.bootstrap.proof import build_shared_proof
    from schnell.engine.device import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.network_classes import import_network_classes
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model

    # before the model: a key that cannot be used ends the start at once
    proof = build_shared_proof(settings)
    import_network_classes()
    safety = load_safety_checker(settings.safety, settings.safety_threshold) if settings.safety else None
    engine = Engine(find_model(settings.model), choose_device(settings.device), safety, proof=proof)
    runner = build_runner(engine)
    runner.warm_up()
    return runner
