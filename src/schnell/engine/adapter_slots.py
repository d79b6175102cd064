"""LoRA files as factors in the slots of a model's layers; the files last used are kept in memory, within a bound."""

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from schnell.adapters import CanonicalAdapter, Dora, Form, Lokr, LowRank, read_adapter
from schnell.engine.slot_linear import KroneckerFactors, SlotLinear
from schnell.errors import AdapterError
from schnell.spec import AdapterUse

#: Down [rank, in] and up [out, rank] of a low-rank product with DoRA's gain [out] or None; or a Kronecker product.
LoadedForm = tuple[Tensor, Tensor, Tensor | None] | KroneckerFactors
#: What an adapter does to each layer, by the layer's canonical name.
LoadedAdapter = Mapping[str, LoadedForm]


class AdapterSlots:
    """Puts adapters into the slots of a model's layers. `layers` are by canonical name.

    Slot 0 is "no LoRA". Which adapter belongs into which slot, and for how long, is decided by the caller.
    """

    def __init__(self, layers: Mapping[str, SlotLinear], max_bytes: int) -> None:
        self._layers = layers
        self.memory = AdapterMemory(layers, max_bytes)
        self._in_slot: dict[int, str] = {}
        # an adapter acts on some layers only; a slot is emptied in those alone
        self._written: dict[int, tuple[str, ...]] = {}

    def load(self, slot: int, adapter: AdapterUse) -> None:
        """Put an adapter into a slot, in place of what was there; nothing is done where it is there already.

        Raises:
            AdapterError: the file is damaged or does not fit; the slot is empty then.
        """
        if self._in_slot.get(slot) == adapter.sha256:
            return
        self._empty(slot)
        loaded = self.memory.load(adapter)
        try:
            self._write(slot, loaded)
        except Exception:
            # half a LoRA must never draw
            self._empty(slot)
            raise
        self._in_slot[slot] = adapter.sha256

    def acts_on_text(self, slot: int) -> bool:
        """Whether the adapter in this slot has side paths in the text encoders."""
        return any(name.startswith("text_encoder") for name in self._written.get(slot, ()))

    def _write(self, slot: int, loaded: LoadedAdapter) -> None:
        self._written[slot] = tuple(loaded)
        for name, form in loaded.items():
            layer = self._layers[name]
            if isinstance(form, KroneckerFactors):
                layer.write_kronecker(slot, form)
            else:
                layer.write_low_rank(slot, *form)

    def _empty(self, slot: int) -> None:
        self._in_slot.pop(slot, None)
        for name in self._written.pop(slot, ()):
            self._layers[name].clear(slot)


class AdapterMemory:
    """Adapter files as tensors in the layers' dtype and on their device, least recently used out first.

    `nbytes` is what they take, by the files' own count; at most `max_bytes`, or one adapter if it is larger than that.
    """

    def __init__(self, layers: Mapping[str, SlotLinear], max_bytes: int) -> None:
        self._layers = layers
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, tuple[LoadedAdapter, int]] = OrderedDict()
        self.nbytes = 0

    def load(self, adapter: AdapterUse) -> LoadedAdapter:
        """The adapter's factors, read from its file unless they are in memory.

        Raises:
            AdapterError: the file is damaged, or has a layer that the model lacks or has in another size.
        """
        if adapter.sha256 in self._loaded:
            self._loaded.move_to_end(adapter.sha256)
            return self._loaded[adapter.sha256][0]
        canonical = read_adapter(adapter.path)
        loaded = self._convert(canonical, adapter.name)
        self._loaded[adapter.sha256] = (loaded, canonical.nbytes)
        self.nbytes += canonical.nbytes
        while self.nbytes > self._max_bytes and len(self._loaded) > 1:  # not the one that was asked for
            _, (_, size) = self._loaded.popitem(last=False)
            self.nbytes -= size
        return loaded

    def _convert(self, canonical: CanonicalAdapter, name: str) -> LoadedAdapter:
        unknown = [module for module in canonical.modules if module not in self._layers]
        if unknown:
            raise AdapterError(f"{name} does not fit the model: it has no {unknown[0]}")
        return {module: self._convert_form(form, self._layers[module]) for module, form in canonical.modules.items()}

    def _convert_form(self, form: Form, layer: SlotLinear) -> LoadedForm:
        size = form.size
        if (size.out_features, size.in_features) != (layer.out_features, layer.in_features):
            raise AdapterError(
                f"a layer of this LoRA is {size}, the model's is {layer.out_features}x{layer.in_features}"
            )
        weight = layer.weight
        if isinstance(form, Lokr):
            return _kronecker(form, weight)
        if isinstance(form, LowRank):
            return _tensor(form.a, weight), _tensor(form.b, weight), None
        return _dora(form, weight)


def _kronecker(form: Lokr, weight: Tensor) -> KroneckerFactors:
    if form.w2 is not None:
        right = _tensor(form.w2, weight)
    else:
        assert form.w2_a is not None  # noqa: S101 - for the type checker: a right factor is whole or in two parts
        assert form.w2_b is not None  # noqa: S101
        # multiplied out once, in float32, rather than as two more products at every step
        right = (_tensor(form.w2_a, weight).float() @ _tensor(form.w2_b, weight).float()).to(weight.dtype)
    return KroneckerFactors(_tensor(form.w1, weight), right, form.start, form.start + form.out_features)


def _dora(form: Dora, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A [rank, in], g*B [out, rank] and g - 1 [out] of a DoRA over `weight` W [out, in].

    DoRA at scale 1 is g*(W + BA) with g = m / |W + BA|, norms taken over inputs; as a delta to W it is (g - 1)*W +
    (g*B)A (Liu et al., arXiv:2402.09353). In float32: g is close to 1, where bfloat16's numbers are 1/256 to 1/128
    apart.
    """
    exact = torch.zeros((), dtype=torch.float32, device=weight.device)
    a, b, magnitude = (_tensor(part, exact) for part in (form.a, form.b, form.magnitude))
    norms = torch.linalg.vector_norm(weight.float() + b @ a, dim=1)
    g = magnitude / norms
    return a.to(weight.dtype), (g.unsqueeze(1) * b).to(weight.dtype), (g - 1).to(weight.dtype)


def _tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], like: Tensor) -> Tensor:
    # by way of float32, since torch does not know the bfloat16 that ml_dtypes adds to numpy; and a copy, since the
    # array is a read-only view of the mapped file
    exact = np.array(array, dtype=np.float32)
    return torch.from_numpy(exact).to(device=like.device, dtype=like.dtype)
