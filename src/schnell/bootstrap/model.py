"""The engine and its runner, out of settings."""

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from schnell.bootstrap.memory import build_quantized_files, target_on, wishes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from schnell.engine.engine import Engine
    from schnell.provenance.proof import Proof
    from schnell.serving.batch_size import BatchSizer
    from schnell.serving.device_share import BatchLimit
    from schnell.serving.runner import InProcessRunner
    from schnell.serving.worker import LaneKey
    from schnell.settings import Settings
    from schnell.side_processes import SideProcesses


@contextmanager
def without_collecting() -> Iterator[None]:
    """Start a process in the block without garbage collections, and let later ones pass by what is there after it.

    torch makes 150,000 objects that stay, and Python's collector walks over all of them several times while it is
    imported, twice at the end of the process, and in a server at any moment, 0.1 to 0.2 s each time.

    For what a process does once: cycles that are garbage by then are never freed (`gc.freeze`). All else is freed with
    the last reference to it, as ever. Where collections are off already, this does nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def build_engine(model: str, *, device: str = "auto", safety: bool = True, proof: "Proof | None" = None) -> "Engine":
    """The engine for a model's name or folder, without the safety check if `safety` is off.

    It runs in the form that the memory plan chooses by itself. Without `proof`, its pictures are neither marked nor
    signed.

    Raises:
        ModelFolderError: no such model here, or no such device.
        ModelTooLargeError: the model does not fit into the device's memory.
        SafetyUnavailableError: the classifier cannot be loaded.
    """
    from schnell.engine.safety import load_safety_checker

    _leave_out_other_devices()
    with ThreadPoolExecutor(1, "schnell-safety") as aside:
        # its network is built outside of Python, while this thread imports torch, which takes longer
        checking = aside.submit(load_safety_checker) if safety else None
        from schnell.engine.devices import choose_device
        from schnell.engine.engine import Engine
        from schnell.engine.memory_plan import make_plan
        from schnell.engine.network_sizes import read_network_sizes
        from schnell.engine.processors import fit_threads_to_quota
        from schnell.models.catalogue import find_model
        from schnell.provenance.proof import NO_PROOF

        folder = find_model(model)
        fit_threads_to_quota()
        chosen = choose_device(device, weights=folder.path)
        form = make_plan(read_network_sizes(folder), target_on(chosen)).form
        checker = checking.result() if checking else None
    return Engine(folder, chosen, checker, form=form, files=build_quantized_files(), proof=proof or NO_PROOF)


def build_runner(*engines: "Engine", beside: "SideProcesses | None" = None) -> "InProcessRunner":
    """A runner over these engines in this process, one a device, their worker threads started.

    `beside` are the processes that steps on a CPU pause.

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
    limits = [DeviceLimits(_limit(*each), each[1].adapter_slots) for each in zip(sizers, engines, strict=True)]
    queue = JobQueue(limits[0].batch_limit, limits[0].adapter_slots, others=limits[1:])
    workers = [Worker(engine, queue, sizers[index], index, beside) for index, engine in enumerate(engines)]
    for worker in workers:
        worker.start()
    return InProcessRunner(*workers)


def _limit(sizer: "BatchSizer[LaneKey]", engine: "Engine") -> "BatchLimit[LaneKey]":
    """As many rows as pay, and as many as the memory plan has room for."""
    return lambda lane: min(sizer.limit(lane), engine.most_rows(lane.tokens))


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


def build_local_runner(
    settings: "Settings", tell: "Callable[[str], object]", beside: "SideProcesses | None" = None
) -> "InProcessRunner":
    """The runner of this process: an engine a device, with the operator's model and safety classifiers, loaded.

    `tell` is given the lines of the memory plan before anything is loaded; `beside` are the processes that steps on a
    CPU pause.

    Raises:
        ConfigurationError: the devices are named in two settings, or what `SCHNELL_COMPILE=on` takes is not here.
        ModelFolderError, SafetyUnavailableError: the model or a classifier cannot be loaded.
        CredentialsError: the key that signs pictures cannot be used.
        ModelTooLargeError: the model does not fit into a device's memory in the form that the settings ask for.
    """
    _leave_out_other_devices()
    from schnell.bootstrap.proof import build_shared_proof
    from schnell.engine.compiler import choose_compiler
    from schnell.engine.devices import choose_server_devices
    from schnell.engine.engine import Engine
    from schnell.engine.memory_plan import describe, make_plan
    from schnell.engine.network_sizes import read_network_sizes
    from schnell.engine.pictures import keep_memory_of_pictures
    from schnell.engine.processors import fit_threads_to_quota
    from schnell.engine.safety import load_safety_checker
    from schnell.errors import ConfigurationError
    from schnell.models.catalogue import find_model
    from schnell.models.folder import compiled_home

    if settings.devices and settings.device != "auto":
        raise ConfigurationError("SCHNELL_DEVICE and SCHNELL_DEVICES are both set: set the one that you mean")
    # before the model: a key that cannot be used ends the start at once
    proof = build_shared_proof(settings)
    fit_threads_to_quota()
    keep_memory_of_pictures()
    folder = find_model(settings.model)
    devices = choose_server_devices(settings.devices or (settings.device,), folder.path)
    sizes, wishes = read_network_sizes(folder), wishes_of(settings)
    plans = [make_plan(sizes, target_on(device), wishes) for device in devices]
    for line in dict.fromkeys(line for plan in plans for line in describe(plan)):
        tell(line)
    safety = load_safety_checker(settings.safety, settings.safety_threshold) if settings.safety else None
    files = build_quantized_files() if settings.keep_quantized else None
    engines = [
        Engine(
            folder,
            device,
            safety,
            form=plan.form,
            files=files,
            compiler=choose_compiler(settings.compile, device, compiled_home()),
            proof=proof,
        )
        for device, plan in zip(devices, plans, strict=True)
    ]
    runner = build_runner(*engines, beside=beside)
    runner.warm_up()
    return runner


def _leave_out_other_devices() -> None:
    # torch would ask every installed package whether it brings a device of its own; `choose_device` takes none of those
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
