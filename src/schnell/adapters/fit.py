"""Whether an adapter's layers exist in the model, and have its sizes."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from schnell.adapters.names import (Component, block_index)
from schnell.adapters.shape import (FLUX_1, LinearSize, ModelShape)
from schnell.adapters.sizes import (block_count, expected_size)
from schnell.adapters.source import (SourceFile, SourceModule)
from schnell.adapters.tensors import shorten

_ANY_NUMBER: Final = 10_000
_BLOCKS: Final = ("transformer_blocks.", "single_transformer_blocks.")


@dataclass(frozen=True, slots=True)
class Target:
    """One diffusers layer that an adapter acts on, and the size of its delta. -1 for outputs: any number."""

    component: Component
    module: str
    size: LinearSize


def find_misfit(targets: Iterable[Target], shape: ModelShape | None, width: int | None, made_for: str) -> str | None:
    """Why these layers do not fit the model, or None if they do: the width first, then blocks, then each layer's size.

    Without a shape they are measured against FLUX.1 of their own width; where that is not 3072, inside blocks only.
    """
    targets = tuple(targets)
    if shape is None:
        shape = _own_shape(width)
        if width not in {None, FLUX_1.width}:
            targets = tuple(target for target in targets if target.module.startswith(_BLOCKS))
    if width is not None and width != shape.width:
        return f"it is made for width {width} ({made_for}), this model is {shape.width} wide"
    problems = [_block_problem(target, shape) for target in targets]
    problems += [_size_problem(target, shape, made_for) for target in targets]
    return next((problem for problem in problems if problem), None)


def _own_shape(width: int | None) -> ModelShape:
    if width in {None, FLUX_1.width}:
        return FLUX_1
    return replace(FLUX_1, width=width or FLUX_1.width, double_blocks=_ANY_NUMBER, single_blocks=_ANY_NUMBER)


def targets_of_source(source: SourceFile) -> tuple[Target, ...]:
    """The layers that a source file acts on, as its header tells."""
    return tuple(target for module in source.modules if module.kind != "bias" for target in _targets(module))


def _targets(module: SourceModule) -> Iterable[Target]:
    blocks = module.destination.row_blocks
    size = module.size
    for part in module.destination.parts:
        taken = sum(stop - start for start, stop in part.blocks)
        whole = size.out_features % blocks == 0
        out = size.out_features // blocks * taken if whole else size.out_features
        yield Target(
            module.destination.component,
            part.module,
            LinearSize(-1 if size.out_features < 0 else out, size.in_features),
        )


def _block_problem(target: Target, shape: ModelShape) -> str | None:
    place = block_index(target.module)
    if place is None:
        return None
    family, index = place
    count = block_count(shape, family)
    if index < count:
        return None
    return f"it targets {target.component}.{family}.{index}, this model has only {count} ({family}.0 to {count - 1})"


def _size_problem(target: Target, shape: ModelShape, made_for: str) -> str | None:
    name = f"{target.component}.{shorten(target.module)}"
    expected = expected_size(shape, target.component, target.module)
    if expected is None:
        return f"it targets {name}, which this model does not have"
    wrong_out = target.size.out_features not in {-1, expected.out_features}
    if wrong_out or target.size.in_features != expected.in_features:
        return f"{name} is {target.size} in the file (made for {made_for}), {expected} in this model"
    return None
