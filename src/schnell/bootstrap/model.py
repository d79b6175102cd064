"""The engine and its runner, out of settings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    from schnell.engine.devices import choose_device
    from schnell.engine.engine import Engine
    from schnell.engine.safety import load_safety_checker
    from schnell.models.catalogue import find_model
    from schnell.provenance.proof import NO_PROOF

    folder = find_model(model)
    checker = load_safety_checker() if safety else None
    return Engine(folder, choose_device(device, weights=folder.path), checker, proof=proof or NO_PROOF)


def build_runner(*engines: "Engine") -> "InProcessRunner":
    """A runner over these engines in this process, one a device, their worker threads started.

    Raises:
        ConfigurationError: they would draw the same request in different precisions.
    """
    from schnell.serving.batch_size import BatchSizer
    from schnell.serving.device_share import DeviceLimits
    from schnell.serving.queue import JobQueue
    from schnell.serving.runner import InProcessRunner
    from schnell.serving.worker import LaneKey, Worker

    _refuse_mixed_precisions(engines)
    # one for both: the worker reports how long steps took, the queue asks how large a batch may be. A GPU begins with
    # one row, which fills it if it is large
    sizers: list[BatchSizer[LaneKey]] = [BatchSizer(first=4 if each.device.type == "cpu" else 1) for each in engines]
    limits = [DeviceLimits(sizer.limit, engine.adapter_slots) for sizer, engine in zip(sizers, engines, strict=True)]
    queue = JobQueue(limits[0].batch_limit, limits[0].adapter_slots, others=limits[1:])
    workers = [Worker(engine, queue, sizers[index], index) for index, engine in enumerate(engines)]
    for worker in workers:
        worker.start()
    return InProcessRunner(*workers)


def _refuse_mixed_precisions(engines: "Sequence[Engine]") -> None:
    from schnell.errors import ConfigurationError

    found = {
        tuple(engine.precision_for(go_fast=go_fast).name for go_fast in (False, True)): engine.device
        for engine in engines
    }
    if len(found) > 1:
        devices = ", ".join(map(str, found.values()))
        raise ConfigurationError(
            f"SCHNELL_DEVICES: {devices} compute in different precisions, so a picture would depend on which of them "
            "draws it; name devices of one kind, and start a server for each kind"
        )


def build_server_runner(settings: "Settings") -> "Runner":
    """The server's runner: an engine a device, with the operator's model and safety classifiers, loaded and started.

    Raises:
        ConfigurationError: the devices are named in two settings.
        ModelFolderError, SafetyUnavailableError: the model or a classifier cannot be loaded.
        CredentialsError: the key that signs pictures cannot be used.
    """
    from schnell.bootstrap.proof import build_shared_proof
    from schnell.engine.devices import choose_server_devices
    from schnell.engine.engine import Engine
    from schnell.engine.safety import load_safety_checker
    from schnell.errors import ConfigurationError
    from schnell.models.catalogue import find_model

    if settings.devices and settings.device != "auto":
        raise ConfigurationError("SCHNELL_DEVICE and SCHNELL_DEVICES are both set: set the one that you mean")
    # before the model: a key that cannot be used ends the start at once
    proof = build_shared_proof(settings)
    safety = load_safety_checker(settings.safety, settings.safety_threshold) if settings.safety else None
    folder = find_model(settings.model)
    devices = choose_server_devices(settings.devices or (settings.device,), folder.path)
    runner = build_runner(*(Engine(folder, device, safety, proof=proof) for device in devices))
    runner.warm_up()
    return runner
