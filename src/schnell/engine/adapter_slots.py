"""LoRA files as factors in the slots of a model's layers; the files last used are kept in memory, within a bound."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import filterfalse
from typing import Final

import numpy as np
import torch
from torch import Tensor

from schnell.adapters import CanonicalAdapter, Dora, Form, Lokr, LowRank, read_adapter
from schnell.adapters.decompose import MIN_ENERGY, Decomposition, compress, compress_kronecker
from schnell.adapters.forms import Floats
from schnell.adapters.tensors import Array
from schnell.engine.accelerator import make_current
from schnell.engine.lora_factors import KroneckerFactors
from schnell.engine.slot_linear import SlotPart, SlotPlan, slot_layers
from schnell.engine.slot_routing import SlotRouting
from schnell.engine.uploads import Uploads
from schnell.errors import AdapterError
from schnell.spec import AdapterUse

log = logging.getLogger(__name__)

#: Down [rank, in] and up [out, rank] of a low-rank product with DoRA's gain [out] or None; or a Kronecker product.
LoadedForm = tuple[Tensor, Tensor, Tensor | None] | KroneckerFactors

_LOST_PERCENT: Final = 100 * (1 - MIN_ENERGY)


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """What an adapter does to each layer, by the layer's canonical name; its bytes; what its user should know of it."""

    forms: Mapping[str, LoadedForm]
    nbytes: int
    warnings: tuple[str, ...] = ()


class AdapterSlots:
    """Puts adapters into the slots of a model's layers. `parts` are by canonical name, all over one `routing`.

    Slot 0 is "no LoRA". Which adapter belongs into which slot, and for how long, is decided by the caller.
    """

    def __init__(self, parts: Mapping[str, SlotPart], routing: SlotRouting, plan: SlotPlan, max_bytes: int) -> None:
        self._parts, self._routing = parts, routing
        self.memory = AdapterMemory(parts, plan, max_bytes)
        # for the transformer's slots alone. Those of the text encoders come and go with their adapters: they are made
        # on the stream that reads them, or torch could give their memory to another copy while they are still read
        self.uploads = Uploads.of(plan.device) if plan.reserved else Uploads()
        self._in_slot: dict[int, str] = {}
        self._warnings: dict[str, tuple[str, ...]] = {}  # of those adapters that have any, by hash
        # an adapter acts on some layers only; a slot is emptied in those alone
        self._written: dict[int, tuple[str, ...]] = {}

    def load(self, slot: int, adapter: AdapterUse) -> None:
        """Put an adapter into a slot, in place of what was there; nothing is done where it is there already.

        Raises:
            AdapterError: the file is damaged or does not fit; the slot is empty then, as after any other failure.
        """
        if self._in_slot.get(slot) == adapter.sha256:
            return
        before = self._empty(slot)
        try:
            loaded = self.memory.load(adapter)
            if loaded.warnings:
                self._warnings[adapter.sha256] = loaded.warnings
            self._write(slot, loaded.forms)
        except Exception:
            # half a LoRA must never draw
            before += self._empty(slot)
            raise
        finally:
            for layer in slot_layers(self._parts[name] for name in before):
                layer.give_back()
        self._in_slot[slot] = adapter.sha256

    def clear(self, slot: int) -> None:
        """Empty a slot, and give back its memory where the plan allows."""
        for layer in slot_layers(self._parts[name] for name in self._empty(slot)):
            layer.give_back()

    def warnings_for(self, sha256: str) -> tuple[str, ...]:
        """What the user of this adapter should know about how it is drawn."""
        return self._warnings.get(sha256, ())

    def acts_on_text(self, slot: int) -> bool:
        """Whether the adapter in this slot has side paths in the text encoders."""
        return not all(map(_is_of_transformer, self._written.get(slot, ())))

    @property
    def slot_bytes(self) -> int:
        """What the slots of all layers take now."""
        return sum(layer.slot_bytes for layer in slot_layers(self._parts.values()))

    def _write(self, slot: int, forms: Mapping[str, LoadedForm]) -> None:
        self._written[slot] = tuple(forms)
        with self.uploads.copying():
            for name in filter(_is_of_transformer, forms):
                self._write_part(slot, name, forms[name])
        for name in filterfalse(_is_of_transformer, forms):
            self._write_part(slot, name, forms[name])

    def _write_part(self, slot: int, name: str, form: LoadedForm) -> None:
        if isinstance(form, KroneckerFactors):
            self._parts[name].write_kronecker(slot, form)
        else:
            self._parts[name].write_low_rank(slot, *form)

    def _empty(self, slot: int) -> tuple[str, ...]:
        """Empty a slot; gives the parts that it had something in."""
        self._in_slot.pop(slot, None)
        names = self._written.pop(slot, ())
        with self.uploads.copying():
            for name in filter(_is_of_transformer, names):
                self._parts[name].clear(slot)
        for name in filterfalse(_is_of_transformer, names):
            self._parts[name].clear(slot)
        self._routing.note_empty(slot)
        return names


class AdapterMemory:
    """Adapter files as host tensors in the slots' dtype, least recently used out first; for several threads.

    `nbytes` is what they take; at most `max_bytes`, or one adapter if it is larger than that.
    """

    def __init__(self, parts: Mapping[str, SlotPart], plan: SlotPlan, max_bytes: int) -> None:
        self._parts, self._plan = parts, plan
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, LoadedAdapter] = OrderedDict()
        # one that is read ahead in another thread is waited for, not read twice
        self._under_way: dict[str, Future[LoadedAdapter]] = {}
        self._asked: set[str] = set()
        self._lock = threading.Lock()
        device = plan.device
        self._reader = ThreadPoolExecutor(1, "schnell-lora", initializer=lambda: make_current(device))
        self.nbytes = 0

    def read_ahead(self, adapter: AdapterUse) -> None:
        """Read a file in another thread, unless it is in memory or on its way there.

        What fails there fails again, with its message, where the adapter is used.
        """
        with self._lock:
            if adapter.sha256 in self._loaded or adapter.sha256 in self._under_way or adapter.sha256 in self._asked:
                return
            self._asked.add(adapter.sha256)
        self._reader.submit(self._read_quietly, adapter)

    def _read_quietly(self, adapter: AdapterUse) -> None:
        try:
            self.load(adapter)
        except Exception as error:  # noqa: BLE001 - nobody waits for it here
            log.info("a LoRA could not be read ahead", extra={"lora": adapter.name, "error": str(error)})
        finally:
            with self._lock:
                self._asked.discard(adapter.sha256)

    def has(self, sha256: str) -> bool:
        """Whether an adapter needs not be read from its file."""
        with self._lock:
            return sha256 in self._loaded

    def load(self, adapter: AdapterUse) -> LoadedAdapter:
        """The adapter's factors, read from its file unless they are in memory.

        Raises:
            AdapterError: the file is damaged, has a layer that the model lacks or has in another size, or needs a
                larger rank than is planned for.
        """
        with self._lock:
            if adapter.sha256 in self._loaded:
                self._loaded.move_to_end(adapter.sha256)
                return self._loaded[adapter.sha256]
            under_way = self._under_way.get(adapter.sha256)
            mine: Future[LoadedAdapter] = Future()
            if under_way is None:
                self._under_way[adapter.sha256] = mine
        return self._read(adapter, mine) if under_way is None else under_way.result()

    def _read(self, adapter: AdapterUse, to: "Future[LoadedAdapter]") -> LoadedAdapter:
        """Read a file without holding up those who want another adapter; `to` tells those who want this one."""
        try:
            loaded = self._convert(read_adapter(adapter.path), adapter.name)
        except BaseException as error:
            with self._lock:
                del self._under_way[adapter.sha256]
            to.set_exception(error)
            raise
        with self._lock:
            del self._under_way[adapter.sha256]
            self._keep(adapter.sha256, loaded)
        to.set_result(loaded)
        return loaded

    def _keep(self, sha256: str, loaded: LoadedAdapter) -> None:
        self._loaded[sha256] = loaded
        self.nbytes += loaded.nbytes
        while self.nbytes > self._max_bytes and len(self._loaded) > 1:  # not the one that was asked for
            _, dropped = self._loaded.popitem(last=False)
            self.nbytes -= dropped.nbytes

    def _convert(self, canonical: CanonicalAdapter, name: str) -> LoadedAdapter:
        unknown = [module for module in canonical.modules if module not in self._parts]
        if unknown:
            raise AdapterError(f"{name} does not fit the model: it has no {unknown[0]}")
        fitted = {module: self._fit(form, self._parts[module], name) for module, form in canonical.modules.items()}
        # a LoKr that is a low-rank product in another notation loses nothing that a warning would be owed for
        reduced = any(
            fitted[module] is not form and not isinstance(form, Lokr) for module, form in canonical.modules.items()
        )
        warning = (
            f"{name} has rank {canonical.info.rank}; it is drawn with rank {self._plan.rank}, which holds all but "
            f"{_LOST_PERCENT:.1f}% of it"
        )
        forms = {module: self._as_tensors(form, self._parts[module]) for module, form in fitted.items()}
        nbytes = sum(_host_bytes(each) for form in forms.values() for each in _tensors_of(form))
        return LoadedAdapter(forms, nbytes, (warning,) if reduced else ())

    def _fit(self, form: Form, part: SlotPart, name: str) -> Form:
        """The form as slots can hold it: of the planned rank, and low-rank where shapes must not change."""
        size, most = form.size, self._plan.rank
        if (size.out_features, size.in_features) != (part.out_features, part.in_features):
            raise AdapterError(f"a layer of this LoRA is {size}, the model's is {part.out_features}x{part.in_features}")
        if isinstance(form, Lokr):
            whole = form.start == 0 and form.w1.shape[0] * _right(form).shape[0] == form.out_features
            if not self._plan.reserved or not whole:
                return form
            reduced = compress_kronecker(_exact(form.w1), _right(form), most)
            # a LoKr of full rank stays one: such a batch runs uncompiled
            return _low_rank(reduced) if reduced.sufficient else form
        if form.rank <= most:
            return form
        reduced = compress(_exact(form.b), _exact(form.a), most)
        if not reduced.sufficient:
            raise AdapterError(
                f"{name} has rank {form.rank}, and this server's LoRA slots hold rank {most}: at {most} it would lose "
                f"{100 * (1 - reduced.energy):.1f}% of a layer. A larger SCHNELL_LORA_RANK takes it"
            )
        return Dora(reduced.down, reduced.up, form.magnitude) if isinstance(form, Dora) else _low_rank(reduced)

    def _as_tensors(self, form: Form, part: SlotPart) -> LoadedForm:
        if isinstance(form, Lokr):
            left, right = (self._host(each) for each in (_exact(form.w1), _right(form)))
            device = self._plan.device
            return KroneckerFactors(left.to(device), right.to(device), form.start, form.start + form.out_features)
        if isinstance(form, Dora):
            return self._dora(form, part)
        return self._host(form.a), self._host(_exact(form.b).T).T, None

    def _dora(self, form: Dora, part: SlotPart) -> tuple[Tensor, Tensor, Tensor]:
        """A [rank, in], g*B [out, rank] and g - 1 [out] of a DoRA over the layer's weight W [out, in].

        DoRA at scale 1 is g*(W + BA) with g = m / |W + BA|, norms taken over inputs; as a delta to W it is (g - 1)*W +
        (g*B)A (Liu et al., arXiv:2402.09353). In float32: g is close to 1, where bfloat16's numbers are 1/256 to 1/128
        apart.
        """
        device = self._plan.device
        a, b, magnitude = (torch.from_numpy(_exact(each)).to(device) for each in (form.a, form.b, form.magnitude))
        g = magnitude / torch.linalg.vector_norm(part.weight().to(device).float() + b @ a, dim=1)
        return self._host(a), self._host((g.unsqueeze(1) * b).T).T, self._host(g - 1)

    def _host(self, values: Tensor | Array) -> Tensor:
        """A contiguous tensor in the slots' dtype on the CPU, in memory that a GPU can read by itself if there is one.

        Factors of the way up are handed over turned: slots hold them so, and what is turned on its way is copied twice.
        """
        tensor = values.cpu() if isinstance(values, Tensor) else torch.from_numpy(_exact(values))
        host = tensor.to(self._plan.dtype).contiguous()
        return host.pin_memory() if self._plan.device.type == "cuda" else host


def _is_of_transformer(name: str) -> bool:
    return not name.startswith("text_encoder")


def _tensors_of(form: LoadedForm) -> tuple[Tensor, ...]:
    if isinstance(form, KroneckerFactors):
        return form.left, form.right
    return tuple(each for each in form if each is not None)


def _host_bytes(tensor: Tensor) -> int:
    """What a tensor takes of host memory: torch pins whole powers of two."""
    return 1 << (tensor.nbytes - 1).bit_length() if tensor.is_pinned() else tensor.nbytes


def _exact(array: Array) -> Floats:
    # float32, since torch does not know the bfloat16 that ml_dtypes adds to numpy; and a copy, since the array is a
    # read-only view of the mapped file
    return np.array(array, dtype=np.float32)


def _right(form: Lokr) -> Floats:
    """A LoKr's right factor, multiplied out once rather than as two more products at every step."""
    if form.w2 is not None:
        return _exact(form.w2)
    assert form.w2_a is not None  # noqa: S101 - for the type checker: a right factor is whole or in two parts
    assert form.w2_b is not None  # noqa: S101
    return _exact(form.w2_a) @ _exact(form.w2_b)


def _low_rank(reduced: Decomposition) -> LowRank:
    return LowRank(reduced.down, reduced.up)
