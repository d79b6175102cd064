"""Whether a training has room on its device: sums made before anything is loaded, and a refusal in words.

Source of the activations: Korthikanti et al., arXiv:2205.05198, section 4.1. A transformer layer keeps 34 bytes for
each token and channel in 16 bits, without the attention matrices, which are never written out here. FLUX's blocks
differ a little from theirs: these are estimates, not compared with a training at FLUX.1's size.
"""

from dataclasses import dataclass, replace
from typing import Final

from schnell.engine.device import free_memory
from schnell.engine.memory_sums import LIBRARY_BYTES, MEGAPIXEL, row_tokens
from schnell.engine.network_sizes import NetworkSizes, read_network_sizes
from schnell.errors import TrainingError
from schnell.training.low_rank import BaseModel
from schnell.training.plan import TrainingPlan

#: Numbers that a block keeps for its backward pass, for each token and channel: 34 bytes, of two each.
_KEPT_NUMBERS: Final = 17
#: A factor, its gradient and AdamW's two moments, in float32.
_FACTOR_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """What a training takes at its peak, in bytes: with every activation kept, and with `checkpointing`."""

    whole: int
    checkpointed: int


def training_memory(sizes: NetworkSizes, plan: TrainingPlan, number_bytes: int) -> TrainingMemory:
    """The sums for a model whose numbers have so many bytes."""
    layers = (each for sort in sizes.block_sorts for each in sort.layers * sort.count)
    factors = plan.rank * _FACTOR_BYTES * sum(each.rank_numbers for each in layers)
    blocks = sum(sort.count for sort in sizes.block_sorts)
    channels = _batch_tokens(sizes, plan) * sizes.width * number_bytes
    kept = (_KEPT_NUMBERS * blocks, _KEPT_NUMBERS + blocks)
    loaded = (sizes.transformer + sizes.vae) * number_bytes + factors
    # the text encoders are loaded alone, before all else
    first = sizes.text * number_bytes
    whole, checkpointed = (max(first, loaded + each * channels) + LIBRARY_BYTES for each in kept)
    return TrainingMemory(whole, checkpointed)


def fit_plan(base: BaseModel, plan: TrainingPlan) -> TrainingPlan:
    """The plan as the device has room for it: with checkpointing where it does not fit without.

    Raises:
        TrainingError: it does not fit at all; the message says what is needed and what is free.
        ModelFolderError: a configuration of the model is missing.
    """
    needed = training_memory(read_network_sizes(base.folder), plan, base.precision.dtype.itemsize)
    free = free_memory(base.device)
    if needed.whole <= free:
        return plan
    if needed.checkpointed <= free:
        return replace(plan, checkpointing=True)
    raise TrainingError(
        f"training a LoRA for {base.folder.name} needs about {needed.checkpointed / 1e9:.1f} GB of memory on "
        f"{base.device}, and {free / 1e9:.1f} GB are free: train where nothing is served, or with a lower --rank "
        "or --batch-size"
    )


def _batch_tokens(sizes: NetworkSizes, plan: TrainingPlan) -> int:
    """Tokens of pictures and prompts in the largest batch: larger pictures come in smaller batches."""
    areas = [float(area) for area, _ in plan.megapixels]
    counts = {area: max(1, round(plan.batch_size * min(areas) / area)) for area in areas}
    return max(count * row_tokens(sizes, int(area * MEGAPIXEL)) for area, count in counts.items())
