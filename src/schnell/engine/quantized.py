"""Linear layers over quantized weights: float8 and int8 by rows, and 4 bits by groups.

Each keeps its weights in `codes` and `scales` and multiplies without ever holding the whole matrix in the compute
dtype, except for 4 bits, which no card multiplies: those are written out for the product and forgotten. Float8 and
int8 quantize the activations as well, a scale a token, so that the product runs on the card's fast units; on a CPU the
same numbers are multiplied by plain torch, so that a test there says what a card draws.

Source: Dettmers et al., "QLoRA" (arXiv:2305.14314) for 4 bits by groups; others in `engine.rounded_products`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.rounded_products import FLOAT8, INT8, RoundedArithmetic, with_bias

#: How a layer's weights are stored. `float8` and `int8` round the activations too; `int8_weights` and `int4` don't.
Kind = Literal["float8", "int8", "int8_weights", "int4"]

#: Of the stored form. A file that was written with another version is made anew.
FORMAT_VERSION: Final = 1

#: Weights in a row that share a 4-bit scale and offset: 4.5 bits a weight in all.
_GROUP: Final = 64
_LARGEST_CODE: Final = 15
#: Shares of a group's range that are tried for its 4-bit scale: outliers that are cut off leave finer steps to the
#: others. The best by squared error is kept.
_RANGE_SHARES: Final = (1.0, 0.9, 0.8)
#: So that a row of zeros does not divide by zero.
_LEAST_SCALE: Final = 1e-12
#: Elements of a weight that are quantized at a time: 4 bits try several scales in float32, which would otherwise take
#: ten times the layer's own memory.
_CHUNK: Final = 1 << 24


class QuantizedLinear(nn.Module):
    """`nn.Linear` over quantized weights, which `fill` sets. Until then they are meta tensors of the right shapes.

    `dtype` is what `full_weight` gives. The bias stays in it, unquantized.
    """

    codes: Tensor
    scales: Tensor
    #: Of the product, where the inputs are rounded as well.
    arithmetic: ClassVar[RoundedArithmetic | None] = None

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.dtype = dtype
        self.bias = bias
        for name, empty in self.layout(in_features, out_features, dtype).items():
            self.register_buffer(name, empty)

    @classmethod
    def layout(cls, in_features: int, out_features: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Meta tensors of the shapes and dtypes that a layer of this size is stored in, by name."""
        raise NotImplementedError

    @classmethod
    def fits(cls, in_features: int, out_features: int) -> bool:
        """Whether a layer of this size can be stored so. float8's and int8's products take sides by sixteens."""
        return in_features % 16 == 0 and out_features % 16 == 0

    @classmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        """A weight (out, in) in stored form, on its device."""
        raise NotImplementedError

    def fill(self, weight: Tensor) -> None:
        """Take over a weight (out, in), quantized on the device that it is on."""
        rows = max(1, _CHUNK // self.in_features)
        parts = [self.quantize(part) for part in torch.split(weight.detach(), rows)]
        for name in parts[0]:
            setattr(self, name, torch.cat([part[name] for part in parts]) if len(parts) > 1 else parts[0][name])

    def full_weight(self) -> Tensor:
        """The weight (out, in) in the compute dtype, as the product sees it: a new tensor."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """`x` (tokens, in) times the weight, plus the bias: (tokens, out) in the dtype of `x`."""
        return F.linear(x, self.full_weight().to(x.dtype), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of `x`."""
        return self.product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    @property
    def nbytes(self) -> int:
        """The bytes of the stored weight, without the bias."""
        return sum(stored.nbytes for stored in self.buffers(recurse=False))


class Float8Linear(QuantizedLinear):
    """Weights and activations in e4m3, a float32 scale for every output row and every token."""

    arithmetic: ClassVar = FLOAT8

    @classmethod
    def layout(cls, in_features: int, out_features: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `QuantizedLinear.layout`."""
        del dtype  # the scales multiply a float32 sum
        return {
            "codes": torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn, device="meta"),
            "scales": torch.empty(out_features, 1, dtype=torch.float32, device="meta"),
        }

    @classmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        """See `QuantizedLinear.quantize`."""
        codes, scales = FLOAT8.round(weight)
        return {"codes": codes, "scales": scales}

    def full_weight(self) -> Tensor:
        """See `QuantizedLinear.full_weight`."""
        return (self.codes.float() * self.scales).to(self.dtype)

    def product(self, x: Tensor) -> Tensor:
        """See `QuantizedLinear.product`."""
        codes, scales = FLOAT8.round(x)
        return FLOAT8.multiply(codes, scales, self.codes, self.scales, self.bias, x.dtype)


class Int8WeightsLinear(QuantizedLinear):
    """Weights in int8, a float32 scale for every output row; activations as they come."""

    @classmethod
    def layout(cls, in_features: int, out_features: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `QuantizedLinear.layout`."""
        del dtype
        return {
            "codes": torch.empty(out_features, in_features, dtype=torch.int8, device="meta"),
            "scales": torch.empty(out_features, 1, dtype=torch.float32, device="meta"),
        }

    @classmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        """See `QuantizedLinear.quantize`."""
        codes, scales = INT8.round(weight)
        return {"codes": codes, "scales": scales}

    def full_weight(self) -> Tensor:
        """See `QuantizedLinear.full_weight`."""
        return (self.codes.float() * self.scales).to(self.dtype)

    def product(self, x: Tensor) -> Tensor:
        """See `QuantizedLinear.product`."""
        # int8 is exact in bfloat16: no weight is multiplied with its scale, and the codes are all that is written out
        sums = F.linear(x, self.codes.to(x.dtype))
        return with_bias(sums.float() * self.scales.T, self.bias, x.dtype)


class Int8Linear(Int8WeightsLinear):
    """Weights and activations in int8, a float32 scale for every output row and every token; sums are exact."""

    arithmetic: ClassVar = INT8

    def product(self, x: Tensor) -> Tensor:
        """See `QuantizedLinear.product`."""
        codes, scales = INT8.round(x)
        return INT8.multiply(codes, scales, self.codes, self.scales, self.bias, x.dtype)


class Int4Linear(QuantizedLinear):
    """Weights in 4 bits, a scale and an offset for each group of 64; activations as they come.

    Two codes share a byte of `codes` (out, in / 2): a row's first half is in the low bits, its second in the high ones,
    so that unpacking writes two contiguous halves.
    """

    offsets: Tensor

    @classmethod
    def layout(cls, in_features: int, out_features: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `QuantizedLinear.layout`."""
        groups = torch.empty(out_features, in_features // _GROUP, 1, dtype=dtype, device="meta")
        codes = torch.empty(out_features, in_features // 2, dtype=torch.uint8, device="meta")
        return {"codes": codes, "scales": groups, "offsets": groups.clone()}

    @classmethod
    def fits(cls, in_features: int, out_features: int) -> bool:
        """See `QuantizedLinear.fits`."""
        del out_features
        return in_features % _GROUP == 0

    @classmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        """See `QuantizedLinear.quantize`."""
        codes, scales, offsets = to_int4(weight)
        low, high = codes.chunk(2, dim=1)
        return {"codes": low | (high << 4), "scales": scales, "offsets": offsets}

    def full_weight(self) -> Tensor:
        """See `QuantizedLinear.full_weight`."""
        codes = torch.cat([self.codes & _LARGEST_CODE, self.codes >> 4], dim=1)
        groups = codes.view(self.out_features, -1, _GROUP).to(self.dtype)
        return torch.addcmul(self.offsets, groups, self.scales).view(self.out_features, self.in_features)


LAYERS: Final[Mapping[Kind, type[QuantizedLinear]]] = {
    "float8": Float8Linear,
    "int8": Int8Linear,
    "int8_weights": Int8WeightsLinear,
    "int4": Int4Linear,
}


def stored_bytes(kind: Kind, in_features: int, out_features: int) -> int:
    """The bytes of a weight of this size as it is stored; of its own 16 bits where the kind does not fit the size."""
    layer = LAYERS[kind]
    if not layer.fits(in_features, out_features):
        return 2 * in_features * out_features
    return sum(part.nbytes for part in layer.layout(in_features, out_features, torch.bfloat16).values())


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (out, in) as codes from 0 to 15, uint8 (out, in), with scale and offset (out, groups, 1) in its dtype.

    Of several scales for each group the one with the least squared error is kept.
    """
    groups = weight.float().view(len(weight), -1, _GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best: tuple[Tensor, ...] | None = None
    for share in _RANGE_SHARES:
        # rounded to the stored dtype first: codes are then chosen for the numbers that they are multiplied with
        scales = ((high - low) * (share / _LARGEST_CODE)).clamp_min(_LEAST_SCALE).to(weight.dtype)
        offsets = ((low + high) / 2 - scales.float() * (_LARGEST_CODE / 2)).to(weight.dtype)
        codes = ((groups - offsets.float()) / scales.float()).round().clamp(0, _LARGEST_CODE)
        error = torch.addcmul(offsets.float(), codes, scales.float()).sub_(groups).square_().sum(-1, keepdim=True)
        found = (error, codes, scales, offsets)
        if best is None:
            best = found
        else:
            better = error < best[0]
            best = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
    assert best is not None  # noqa: S101 - for the type checker: there are shares
    return best[1].to(torch.uint8).view_as(weight), best[2], best[3]


#: Layers of the transformer that turn timestep and prompt into shifts, scales and gates.
_MODULATION: Final = re.compile(r"(double|single)_blocks\.\d+\.(img_mod|txt_mod|modulation)\.")
_BLOCKS: Final = re.compile(r"(double|single)_blocks\.")
KindOf = Callable[[str], Kind | None]


def transformer_kinds(blocks: Kind | None, modulation: Kind | None, exact_layers: str | None) -> KindOf:
    """The kind of each of the transformer's layers, by its path in `engine.flux`; None: it stays as it is.

    `exact_layers` is a regular expression of layers that must stay. Embedders and the last layer always do: they are
    1 part in 200 of the weights, and all of the picture passes through them.
    """
    exact = re.compile(exact_layers) if exact_layers else None

    def kind_of(path: str) -> Kind | None:
        if not _BLOCKS.match(path) or (exact and exact.match(path)):
            return None
        return modulation if _MODULATION.match(path) else blocks

    return kind_of


def quantized_form(kind_of: KindOf) -> Callable[[str, nn.Linear], QuantizedLinear | None]:
    """What loading exchanges each linear layer for (`engine.loading.LayerForm`): None where it stays as it is."""

    def form(path: str, linear: nn.Linear) -> QuantizedLinear | None:
        kind = kind_of(path)
        if kind is None or not LAYERS[kind].fits(linear.in_features, linear.out_features):
            return None
        layer = LAYERS[kind](linear.in_features, linear.out_features, linear.bias, linear.weight.dtype)
        if not linear.weight.is_meta:
            layer.fill(linear.weight)
        return layer

    return form


def quantize_linears(network: nn.Module, kind_of: KindOf) -> dict[str, QuantizedLinear]:
    """Exchange the linear layers of a network in place; gives the new ones by their paths.

    Those of a network without memory stay without, until their stored form is assigned.
    """
    form, exchanged = quantized_form(kind_of), dict[str, QuantizedLinear]()
    for path, module in list(network.named_modules()):
        if type(module) is nn.Linear and (layer := form(path, module)) is not None:
            exchanged[path] = layer
            parent, _, name = path.rpartition(".")
            network.get_submodule(parent).register_module(name, layer)
    return exchanged


@dataclass(slots=True)
class PathChoice:
    """Which of two arithmetics a network's layers run in from now on."""

    quantized: bool = False


class TwoPathLinear(nn.Module):
    """One layer in two arithmetics: the weight as it is, and quantized. All else of a network is in memory once.

    So a server whose card has room draws with `go_fast` on and off from one network with one set of LoRA slots.
    """

    exact: Any
    quantized: Any

    def __init__(self, exact: nn.Linear, quantized: QuantizedLinear, choice: PathChoice) -> None:
        super().__init__()
        self.exact, self.quantized = exact, quantized
        self.in_features, self.out_features = exact.in_features, exact.out_features
        self.bias = exact.bias
        self._choice = choice

    def full_weight(self) -> Tensor:
        """The weight (out, in) as it is."""
        weight: Tensor = self.exact.weight if isinstance(self.exact, nn.Linear) else self.exact.full_weight()
        return weight

    def now(self) -> nn.Module:
        """What runs now."""
        chosen: nn.Module = self.quantized if self._choice.quantized else self.exact
        return chosen

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of `x`."""
        y: Tensor = self.quantized(x) if self._choice.quantized else self.exact(x)
        return y

    @property
    def nbytes(self) -> int:
        """The bytes of both weights, without the bias."""
        weight = self.full_weight()
        return weight.numel() * weight.itemsize + int(self.quantized.nbytes)


def two_path_form(kind_of: KindOf, choice: PathChoice) -> Callable[[str, nn.Linear], TwoPathLinear | None]:
    """As `quantized_form`, with the layer itself kept beside its quantized form."""
    quantized = quantized_form(kind_of)

    def form(path: str, linear: nn.Linear) -> TwoPathLinear | None:
        layer = quantized(path, linear)
        return None if layer is None else TwoPathLinear(linear, layer, choice)

    return form
