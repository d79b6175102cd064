"""In which form a model runs on a device, decided before a weight is loaded.

`make_plan` goes down a list of forms, from the one for the largest cards to the one that streams the transformer
through a small one, and takes the first whose peak fits (`engine.memory_sums`). Why these forms:
docs/decisions/0041-a-memory-plan-before-loading.md.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

from schnell.engine.memory_sums import (
    LARGEST_PIXELS,
    MEGAPIXEL,
    Form,
    Place,
    Share,
    resident_shares,
    work_shares,
)
from schnell.engine.network_sizes import NetworkSizes
from schnell.engine.quantized import Kind
from schnell.errors import ModelTooLargeError

#: What `SCHNELL_OFFLOAD` may say: nothing leaves the device; T5 does; the transformer's blocks do, too.
Offload = Literal["none", "text", "blocks"]
TextEncoders = Literal["bfloat16", "int8", "int4", "cpu"]

#: Of the memory that a plan may fill; the rest is for what the allocator cannot use for its pieces.
_USABLE: Final = 0.9
#: Bytes from which a part has a line in what people read.
_TOLD: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """The device that is planned for: torch's type, its name for people, free memory of it and of its host in bytes.

    `quantized` is what its products run fastest in (`engine.device.quantized_arithmetic`). `fast` and `exact` are what
    `go_fast` on and off choose on a CPU.
    """

    type: str
    name: str
    memory: int
    host_memory: int
    quantized: Literal["float8", "int8"] | None = None
    fast: str = "bfloat16"
    exact: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an operator sets of the plan; None leaves it to the plan. Each is the setting of the same name."""

    precision: str | None = None
    lora_slots: int | None = None
    lora_rank: int | None = None
    offload: Offload | None = None
    text_encoders: TextEncoders | None = None
    batch_rows: int | None = None
    decode: Literal["whole", "tiles"] | None = None

    def apply(self, form: Form) -> Form:
        """The form with all that is wished for in it."""
        changed = replace(
            form,
            precision=self.precision or form.precision,
            exact=form.exact if self.precision is None else None,
            adapter_slots=self.lora_slots or form.adapter_slots,
            adapter_rank=self.lora_rank or form.adapter_rank,
            rows=self.batch_rows or form.rows,
            whole_pixels={None: form.whole_pixels, "whole": LARGEST_PIXELS, "tiles": 0}[self.decode],
        )
        if self.text_encoders is not None:
            kinds: dict[str, Kind | None] = {"bfloat16": None, "int8": "int8_weights", "int4": "int4", "cpu": form.text}
            place: Place = "cpu" if self.text_encoders == "cpu" else form.text_place
            changed = replace(changed, text=kinds[self.text_encoders], text_place=place)
        return replace(changed, text_place=self._text_place(changed))

    def _text_place(self, form: Form) -> Place:
        if form.text_place == "cpu" or self.offload is None:
            return form.text_place
        return "device" if self.offload == "none" else "streamed"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A form for a target, with its sums.

    `shares` stay for as long as the model is loaded; `work` is what each stage takes besides, one at a time.
    """

    sizes: NetworkSizes
    target: Target
    form: Form
    shares: tuple[Share, ...]
    work: tuple[Share, ...]

    @property
    def peak(self) -> int:
        """The most bytes of the device's memory at once."""
        return sum(each.device for each in self.shares) + max(each.device for each in self.work)

    @property
    def host_peak(self) -> int:
        """The most bytes of the host's memory at once; on a CPU they are the device's."""
        return sum(each.host for each in self.shares) + max(each.host for each in self.work)

    @property
    def fits(self) -> bool:
        """Whether both are within what may be filled."""
        return self.fullness <= 1

    @property
    def fullness(self) -> float:
        """How much of what may be filled is filled: of the device's memory or the host's, whichever is fuller."""
        target = self.target
        return max(self.peak / (_USABLE * target.memory), self.host_peak / (_USABLE * target.host_memory))


def make_plan(sizes: NetworkSizes, target: Target, wishes: Wishes | None = None) -> MemoryPlan:
    """The best plan whose peak fits the target.

    Raises:
        ModelTooLargeError: none fits; the message says what is needed, what there is, and what would do.
    """
    wishes = wishes or Wishes()
    found = _first_fit(sizes, target, wishes)
    if found is None:
        raise ModelTooLargeError(_refusal(sizes, target, wishes))
    return found


def plan_for(sizes: NetworkSizes, target: Target, form: Form) -> MemoryPlan:
    """The sums of one form, whether it fits or not."""
    if target.type != "cpu":
        return MemoryPlan(sizes, target, form, resident_shares(sizes, form), work_shares(sizes, form))
    # bfloat16 and float32 share no number: on a CPU each of two precisions has networks and slots of its own
    forms = [replace(form, precision=name, exact=None) for name in dict.fromkeys((form.precision, form.exact)) if name]
    shares = list(dict.fromkeys(share for each in forms for share in resident_shares(sizes, each, is_compiled=False)))
    work = [share for each in forms for share in work_shares(sizes, each)]
    # it has one memory: what would wait in the host's lies in the device's
    in_one = [[Share(each.name, each.device + each.host) for each in some] for some in (shares, work)]
    return MemoryPlan(sizes, target, form, tuple(in_one[0]), tuple(in_one[1]))


def _first_fit(sizes: NetworkSizes, target: Target, wishes: Wishes) -> MemoryPlan | None:
    return next((plan for plan in _plans(sizes, target, wishes) if plan.fits), None)


def _plans(sizes: NetworkSizes, target: Target, wishes: Wishes) -> Iterator[MemoryPlan]:
    forms = _cpu_forms(target) if target.type == "cpu" else _accelerator_forms(target.quantized)
    for form in dict.fromkeys(wishes.apply(each) for each in forms):
        if wishes.offload != "blocks":
            yield plan_for(sizes, target, form)
    if target.type != "cpu" and wishes.offload in {None, "blocks"}:
        last = wishes.apply(forms[-1])
        # as few blocks as will do: each that waits in host memory is copied once a step
        for streamed in range(1, sizes.double.count + sizes.single.count + 1):
            yield plan_for(sizes, target, replace(last, streamed=streamed))


def _cpu_forms(target: Target) -> list[Form]:
    """Forms for a CPU: slots shrink before the second precision goes."""
    whole = Form(target.fast, target.exact, None, None, "device", 16, 128, rows=16, whole_pixels=LARGEST_PIXELS)
    sizes = ((16, 128, 16), (16, 64, 16), (8, 32, 4), (4, 16, 1))
    forms = [replace(whole, adapter_slots=slots, adapter_rank=rank, rows=rows) for slots, rank, rows in sizes]
    if target.exact != target.fast:
        forms += [replace(each, exact=None) for each in forms]
    # where products of bfloat16 are slower than those of float32, they take half the memory
    return [*forms, replace(forms[-1], precision="bfloat16", exact=None, rows=1, whole_pixels=0)]


def _accelerator_forms(quantized: Literal["float8", "int8"] | None) -> list[Form]:
    """From the largest cards to the smallest. The comments name the first class that each is for."""
    both = Form(quantized or "bfloat16", "bfloat16", None, None, "device", 16, 128, rows=8, whole_pixels=LARGEST_PIXELS)
    one = replace(both, exact=None, adapter_slots=8, rows=4)
    # T5 in eight bits is nearer to itself than in four, and a prompt that was read before does not need it at all
    without_text = replace(one, modulation="int8_weights", text="int8_weights", text_place="streamed", adapter_rank=32)
    small = replace(without_text, precision="int4", adapter_slots=4, rows=1)
    return [
        both,  # 141 GB
        replace(both, adapter_rank=64, rows=4),  # 80
        replace(one, adapter_rank=64),  # 48
        replace(one, text="int8_weights", adapter_rank=32, rows=2, whole_pixels=MEGAPIXEL),  # 32
        replace(without_text, adapter_slots=7, rows=2),  # 24: what one slot takes is room beside the weights
        replace(without_text, adapter_slots=4, rows=1, whole_pixels=MEGAPIXEL),  # 20
        replace(small, whole_pixels=MEGAPIXEL),  # 16
        # what the modulation would free in four bits costs 10 dB (docs/speed.md): blocks wait in host memory instead
        replace(small, adapter_rank=16, whole_pixels=0),  # 12
    ]


def _refusal(sizes: NetworkSizes, target: Target, wishes: Wishes) -> str:
    smallest = min(_plans(sizes, target, wishes), key=lambda plan: plan.fullness)
    needs = [f"{_in_gb(smallest.peak / _USABLE)} of {target.name}'s memory, where {_in_gb(target.memory)} are free"]
    if smallest.host_peak > _USABLE * target.host_memory:
        host = f"{_in_gb(smallest.host_peak / _USABLE)} of the host's"
        needs.append(f"{host}, where {_in_gb(target.host_memory)} are free")
    return f"the model needs {' and '.join(needs)}; {_advice(sizes, target, wishes)}"


def _advice(sizes: NetworkSizes, target: Target, wishes: Wishes) -> str:
    """Which of the operator's own settings stand in the way: one alone if that is enough, or all together."""
    wished = {name: value for name, value in asdict(wishes).items() if value is not None}
    for name, value in wished.items():
        if _first_fit(sizes, target, replace(wishes, **{name: None})) is not None:
            return f"without {_setting(name)}={value} it fits"
    if wished and _first_fit(sizes, target, Wishes()) is not None:
        return f"without {', '.join(map(_setting, wished))} it fits"
    if target.type != "cpu":
        return "SCHNELL_DEVICE=cpu draws it from host memory, slowly, and SCHNELL_MODEL=schnell-mini fits anywhere"
    return "SCHNELL_MODEL=schnell-mini fits anywhere"


def _setting(wish: str) -> str:
    return f"SCHNELL_{wish.upper()}"


def describe(plan: MemoryPlan) -> list[str]:
    """The plan for people: what runs how, then the sums, a line each."""
    form, target = plan.form, plan.target
    off = f" with go_fast, {form.exact} without" if form.has_two_paths else ""
    lines = [
        f"{target.name}: {form.precision}{off}",
        f"steps of up to {form.rows} MP, pictures decoded {_tiles_from(form)}",
        f"{form.adapter_slots} LoRAs at once, up to rank {form.adapter_rank}",
    ]
    # of a small model, most parts are next to nothing
    lines += [_line(each.name, each) for each in plan.shares if each.device + each.host >= _TOLD]
    largest = max(plan.work, key=lambda each: each.device)
    lines.append(_line(f"{largest.name}: the stage that takes the most besides", largest))
    host = f", and {_in_gb(plan.host_peak)} of {_in_gb(target.host_memory)} in host memory" if plan.host_peak else ""
    return [*lines, f"at most {_in_gb(plan.peak)} of {_in_gb(target.memory)}{host}"]


def _tiles_from(form: Form) -> str:
    if form.whole_pixels >= LARGEST_PIXELS:
        return "whole"
    if not form.whole_pixels:
        return "in strips"
    return f"in strips above {form.whole_pixels / MEGAPIXEL:g} MP"


def _line(name: str, share: Share) -> str:
    return f"{_in_gb(share.device):>9}  {name}" + (f" ({_in_gb(share.host)} in host memory)" if share.host else "")


def _in_gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
