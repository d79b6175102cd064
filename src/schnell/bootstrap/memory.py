"""What a model's memory plan is made of: the device, the operator's wishes, and where quantized weights are kept."""

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import torch

    from schnell.engine.memory_plan import MemoryPlan, Target, Wishes
    from schnell.engine.quantized_files import QuantizedFiles
    from schnell.settings import Settings

#: A card that is only asked about is taken for one of today's, which multiply float8.
_ASKED_ABOUT: Final = "float8"


def target_on(device: "torch.device") -> "Target":
    """The device as a plan sees it: what it is, what is free on it and on its host, what it multiplies fastest."""
    import torch

    from schnell.engine.device import choose_precision, free_host_memory, free_memory, quantized_arithmetic
    from schnell.engine.memory_plan import Target

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type.upper()}"
    return Target(
        type=device.type,
        name=name,
        memory=free_memory(device),
        host_memory=free_host_memory(),
        quantized=quantized_arithmetic(device),
        fast=choose_precision(device, go_fast=True).name,
        exact=choose_precision(device, go_fast=False).name,
    )


def target_of_size(gigabytes: float, quantized: Literal["float8", "int8"] = _ASKED_ABOUT) -> "Target":
    """A card that is not here, with so many GB (10^9 bytes) free, in this machine."""
    from schnell.engine.device import free_host_memory
    from schnell.engine.memory_plan import Target

    return Target("cuda", f"a card of {gigabytes:g} GB", int(gigabytes * 1e9), free_host_memory(), quantized)


def wishes_of(settings: "Settings") -> "Wishes":
    """What the operator's settings ask of a plan."""
    from schnell.engine.memory_plan import Wishes

    return Wishes(
        precision=settings.precision,
        lora_slots=settings.lora_slots,
        lora_rank=settings.lora_rank,
        offload=settings.offload,
        text_encoders=settings.text_encoders,
        batch_rows=settings.batch_rows,
        decode=settings.decode,
    )


def build_plan(settings: "Settings", memory: float | None = None) -> "MemoryPlan":
    """The plan that a server with these settings would run by; on a card with `memory` GB, if that is given.

    FLUX.1 [schnell] is planned for before it is downloaded.

    Raises:
        ModelFolderError: the model is not here, or no such device.
        ModelTooLargeError: it does not fit.
    """
    from schnell.engine.devices import choose_device
    from schnell.engine.memory_plan import make_plan
    from schnell.engine.network_sizes import FLUX_SCHNELL, read_network_sizes
    from schnell.models.catalogue import CATALOGUE, FLUX_NAME, find_model

    awaited = any(entry.name == settings.model == FLUX_NAME and not entry.is_here for entry in CATALOGUE)
    sizes = FLUX_SCHNELL if awaited else read_network_sizes(find_model(settings.model))
    target = target_on(choose_device(settings.device)) if memory is None else target_of_size(memory)
    return make_plan(sizes, target, wishes_of(settings))


def build_quantized_files() -> "QuantizedFiles":
    """Where quantized networks are kept: beside what else can be made again."""
    from schnell.engine.quantized_files import QuantizedFiles
    from schnell.models.folder import cache_home

    return QuantizedFiles(cache_home() / "quantized")
