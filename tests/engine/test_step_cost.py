"""What a step of the true FLUX.1 [schnell] costs beside arithmetic, counted without memory (on the meta device)."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from counts import SOAK
from scheduled_kernels import Kernel, memory_without_values, scheduled_kernels
from schnell.engine import rounded_products
from schnell.engine.denoise import position_ids
from schnell.engine.flux import DoubleBlock, Flux, FluxParams, SingleBlock
from schnell.engine.joined_modulation import JoinedLayers, joined_numbers
from schnell.engine.lora_factors import Room
from schnell.engine.network_sizes import FLUX_SCHNELL
from schnell.engine.quantized import Kind, quantize_linears, transformer_kinds
from schnell.engine.slot_linear import SlotLinear, SlotPart, SlotPlan, install_slots, slot_layers
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.weight_names import is_of_tokens, layer_rows
from schnell.engine.widened_linear import WidenedLinear
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


USES: Final = {"none": [], "one": [SlotUse(1, 0.8)]}
Counted = dict[str, Counter[str]]


@cache
def compiled_step(rows: int, kind: Kind | None) -> Counted:
    """Kernels and bytes of a compiled step, its layers stored in this kind, by what acts on each of its rows."""
    total = GRID.width * GRID.height + TEXT_TOKENS
    counted: Counted = {what: Counter() for what in USES}
    for sort, name, blocks in ((DoubleBlock, "double_blocks", 19), (SingleBlock, "single_blocks", 38)):
        routing, network = SlotRouting(torch.device("cpu"), static=True), block_of(sort, name, kind)
        shapes: Any = {"dtype": torch.bfloat16}
        with memory_without_values():
            plan = SlotPlan(count=5, rank=64, dtype=torch.bfloat16, reserved=True, widened=True)
            install_slots(network, routing, plan, layer_rows)
        x = (torch.empty(rows, total - TEXT_TOKENS, 3072, **shapes), torch.empty(rows, TEXT_TOKENS, 3072, **shapes))
        streams = x if sort is DoubleBlock else (torch.cat(x, dim=1),)
        modulation = torch.empty(rows, 4 if sort is DoubleBlock else 1, 3, 1, 3072, **shapes)
        inputs = (*streams, modulation, torch.empty(total, 64, 2))
        block = network.get_submodule(f"{name}.0")
        for what in USES:
            with torch.inference_mode(), routing.using(uses_of(what, rows)):
                for path, layer in network.named_modules():
                    if routing.is_active and isinstance(layer, SlotLinear) and is_of_tokens(path):
                        layer.hold()
                # as a card multiplies float8, not as a CPU does
                with patch.object(rounded_products, "has_float8_units", lambda _: True):
                    kernels = scheduled_kernels(block, inputs)
            counted[what]["launches"] += blocks * sum(launches_of(kernel, rows) for kernel in kernels)
            counted[what]["bytes"] += blocks * sum(kernel.nbytes for kernel in kernels)
        counted["one"]["bytes"] += blocks * bytes_within_operators(network, rows)
    for layers, out in ((38, 18_432), (38, 9_216)):
        count_modulation(counted, layers, out, rows)
    return counted


def uses_of(what: str, rows: int) -> list[list[SlotUse]]:
    """Each row's LoRA is another one."""
    return [[SlotUse(1 + row, use.scale) for use in USES[what]] for row in range(rows)]


def block_of(sort: Callable[[FluxParams], nn.Module], name: str, kind: Kind | None) -> nn.Module:
    with META:
        block = sort(FluxParams()).to(torch.bfloat16).eval().requires_grad_(requires_grad=False)
    network = nn.ModuleDict({name: nn.ModuleList([block])})
    if kind is not None:
        quantize_linears(network, transformer_kinds(kind, None, None))
    return network.to_empty(device="cpu")


def count_modulation(counted: Counted, layers: int, out: int, rows: int) -> None:
    """That of all blocks of a kind, which are one program."""
    routing = SlotRouting(torch.device("cpu"), static=True)
    with META:
        network = nn.ModuleList([nn.Linear(3072, out) for _ in range(layers)]).to(torch.bfloat16)
    network.to_empty(device="cpu").requires_grad_(requires_grad=False)
    with memory_without_values():
        plan = SlotPlan(count=5, rank=64, dtype=torch.bfloat16, reserved=True)
        slots = slot_layers(install_slots(network, routing, plan).values())
        joined = JoinedLayers(slots)
    for what in USES:
        with torch.inference_mode(), routing.using(uses_of(what, rows)):
            if routing.is_active:
                joined.hold()
            kernels = scheduled_kernels(joined, (torch.empty(rows, 3072, dtype=torch.bfloat16),))
        counted[what]["launches"] += len(kernels)
        counted[what]["bytes"] += sum(kernel.nbytes for kernel in kernels)


def launches_of(kernel: Kernel, rows: int) -> int:
    """One, but for our operator: the way down and the product of each of its layers, and zeros for the other rows."""
    # the name comes first; what follows names others, and the room of each layer
    if "products_with_columns" not in kernel.what[:200]:
        return 1
    return (2 + (rows > 1)) * kernel.what.count("python_kernel_name='torch.ops.schnell.room_for_columns")


def bytes_within_operators(network: nn.Module, rows: int) -> int:
    """What our operator moves and no schedule knows of, with one LoRA of `RANK` a row."""
    total, image = 0, GRID.width * GRID.height
    for path, layer in network.named_modules():
        if isinstance(layer, SlotLinear) and is_of_tokens(path) and isinstance(layer.base, WidenedLinear):
            tokens = rows * (TEXT_TOKENS if ".txt_" in path else image + TEXT_TOKENS * ("single" in path))
            columns = RANK * len(layer.parts)
            if layer.base.room.place(rows * RANK) == "columns":
                # the inputs are read for the way down, what comes of it is written; with it, zeros of all rows
                total += 2 * tokens * (layer.in_features + columns + (rows > 1) * rows * columns)
    return total


#: Rows, what layers are stored in, and the GB that a LoRA may move in a row.
CASES: Final[list[tuple[int, Kind | None, float]]] = [(1, None, 10), (4, None, 10), (1, "float8", 10)]
MORE_CASES: Final[list[tuple[int, Kind | None, float]]] = [(2, None, 10), (2, "float8", 10)]
#: Outside of the blocks: embedders, the last layer, and the cut between the streams.
OUTSIDE: Final = 40


@pytest.mark.parametrize(("what", "most"), [("none", 660), ("one", 890)])
def test_a_compiled_step_launches_few_kernels(what: str, most: int) -> None:
    launches = compiled_step(1, None)[what]["launches"] + OUTSIDE
    print(f"launches of a compiled step with LoRA {what}: {launches}")  # noqa: T201 - shown by `pytest -s`
    assert launches <= most


@pytest.mark.parametrize(("rows", "kind", "most"), CASES + MORE_CASES * SOAK)
def test_a_lora_moves_few_bytes_in_a_compiled_step(rows: int, kind: Kind | None, most: float) -> None:
    step = compiled_step(rows, kind)
    moved = (step["one"]["bytes"] - step["none"]["bytes"]) / rows / 1e9
    more = step["one"]["launches"] - step["none"]["launches"]
    what = f"in a compiled step of {rows} rows, {kind or 'bfloat16'}, a LoRA of rank {RANK} moves"
    print(f"{what} {moved:.1f} GB a row, and adds {more} launches")  # noqa: T201 - same
    assert 2 < moved <= most


def test_the_room_for_loras_is_what_the_plan_counts() -> None:
    plan = SlotPlan(count=2, rank=64, dtype=torch.bfloat16, device=META, reserved=True, widened=True)
    with META:
        network = Flux(FluxParams()).to(torch.bfloat16)
        install_slots(network, SlotRouting(META, static=True), plan, layer_rows)
    layers = [each for each in network.modules() if isinstance(each, WidenedLinear)]
    room = sum(each.wide.numel() - each.in_features * each.out_features for each in layers)
    counted = [(count, Room.of(into, out, parts, 64).numbers) for count, into, out, parts in FLUX_SCHNELL.token_layers]
    assert room == sum(count * numbers for count, numbers in counted)


def test_the_room_behind_joined_modulation_is_what_the_plan_counts() -> None:
    plan = SlotPlan(count=2, rank=64, dtype=torch.bfloat16, device=META, reserved=True)
    with META:
        layers = [SlotLinear(nn.Linear(3072, 9216), SlotRouting(META, static=True), plan) for _ in range(3)]
        joined = JoinedLayers(layers)
    assert len(joined.wide) * 3072 == 3 * 3072 * 9216 + joined_numbers(3, 3072, 64)
