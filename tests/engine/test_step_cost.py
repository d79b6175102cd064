"""What a step of the true FLUX.1 [schnell] costs beside arithmetic, counted without memory (on the meta device)."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from schnell.engine.denoise import position_ids
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.slot_linear import SlotPart, SlotPlan, install_slots
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.weight_names import layer_rows
from schnell.spec import Size

META, TEXT_TOKENS, GRID = torch.device("meta"), 256, Size(64, 64)
RANK: Final = 16
#: Operations that read and write nothing: other views of the same memory, and memory without values.
FREE: Final = frozenset(
    {"view", "_unsafe_view", "view_as", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze"}
    | {"split", "split_with_sizes", "t", "detach", "alias", "unbind", "chunk", "flatten", "as_strided"}
    | {"_reshape_alias", "view_as_complex", "view_as_real", "empty", "new_empty", "empty_strided", "empty_like"}
)


class KernelsOfAGpu(TorchFunctionMode):
    """Counts what is one kernel on a GPU, and would fall into several operations on the meta device, as one."""

    def __init__(self, launches: Counter[str]) -> None:
        super().__init__()
        self._launches = launches

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {F.rms_norm, F.layer_norm}:
            self._launches["norm"] += 1
            return torch.empty_like(args[0])
        if func is F.scaled_dot_product_attention:
            self._launches["attention"] += 1
            rows, heads, tokens, width = args[0].shape
            return args[0].new_empty(rows, tokens, heads, width).transpose(1, 2)
        if func is F.linear:
            self._launches["linear"] += 1
            return args[0].new_empty(*args[0].shape[:-1], len(args[1]))
        return func(*args, **(kwargs or {}))


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its types out
    def __init__(self, launches: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        # `to` the dtype that a tensor has already hands the tensor back
        result = func(*args, **(kwargs or {}))
        if name not in FREE and not (name == "to" and result is args[0]):
            self._launches[name] += 1
        return result


@pytest.fixture(scope="module")
def true_shape() -> tuple[Flux, SlotRouting, dict[str, SlotPart]]:
    routing = SlotRouting(META, static=True)
    plan = SlotPlan(count=4, rank=RANK, dtype=torch.bfloat16, device=META, reserved=True)
    with META:
        network = Flux(FluxParams()).to(torch.bfloat16).eval().requires_grad_(requires_grad=False)
        parts = install_slots(network, routing, plan, layer_rows)
        for name, part in parts.items():
            if re.match(r"(single_)?transformer_blocks\..*\.(attn|ff|ff_context|proj_mlp|proj_out)\b", name):
                part.write_low_rank(1, torch.empty(RANK, part.in_features), torch.empty(part.out_features, RANK))
    return network, routing, parts


def inputs(rows: int) -> Sequence[Tensor]:
    shapes: Any = {"device": META, "dtype": torch.bfloat16}
    return (
        torch.empty(rows, GRID.width * GRID.height, 64, **shapes),
        torch.empty(rows, TEXT_TOKENS, 4096, **shapes),
        position_ids(GRID, TEXT_TOKENS),
        torch.empty(rows, device=META),
        torch.empty(rows, 768, **shapes),
    )


def count_launches(network: Flux, routing: SlotRouting, uses: list[list[SlotUse]]) -> Counter[str]:
    launches: Counter[str] = Counter()
    step = inputs(len(uses))
    with torch.inference_mode(), routing.using(uses):
        network(*step)  # what is kept from step to step is made here
        with KernelsOfAGpu(launches), Launches(launches):
            network(*step)
    return launches


@pytest.mark.parametrize(("uses", "most"), [([[]], 1_400), ([[SlotUse(1, 0.8)]], 2_200)])
def test_an_uncompiled_step_launches_few_kernels(
    true_shape: tuple[Flux, SlotRouting, dict[str, SlotPart]], uses: list[list[SlotUse]], most: int
) -> None:
    network, routing, _ = true_shape
    launches = count_launches(network, routing, uses)
    assert launches.total() <= most, launches.most_common()
