"""What FLUX's blocks compute between their matrix products: each function here is one place where devices differ.

Three kinds of run share the network. *Functional*: under autograd and `torch.compile`, which want every result to be a
new tensor (the compiler fuses them anyway). *In place on a CPU*: passes over memory are what costs, so results are
written over what nobody needs any more, in pieces that stay in the cache. *In place on a GPU*: launches are what costs,
so few kernels that torch has ready.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Added to mean squares and variances before their root is divided by.
NORM_EPS: Final = 1e-6
#: Tokens up to which a softmax between two bfloat16 products beats torch's fused attention on a CPU, which rounds less
#: often but multiplies at half the speed; the scores still fit the cache.
_LONGEST_PLAIN_ATTENTION: Final = 512
#: Numbers at a time: 1 MiB of float32, which stays in a core's cache between the passes over it.
_GELU_CHUNK: Final = 1 << 18
#: GELU's tanh form is x * sigmoid(2z) with 2z = x * (linear + cubic * x^2).
_GELU_LINEAR: Final = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC: Final = 0.044715 * _GELU_LINEAR
#: Rotary angles turn by powers of this base (arXiv:2104.09864), and those of so many picture sizes are kept.
_ROTARY_BASE: Final = 10_000.0
_KEPT_TABLES: Final = 8
#: Weights of a layer up to which a second form of them is kept: 2 MiB. Beside the thousands of tokens of larger models
#: writing the blocks takes next to nothing, and a second form would be as much memory as the model.
_LARGEST_PACKED: Final = 1 << 20
#: Vectors that the form is chosen for; others are multiplied in the same one.
_VECTORS: Final = 768


def is_functional() -> bool:
    """Whether results must be new tensors: autograd and the compiler both follow values, not memory."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


class RotaryTables:
    """The turns of every position, made once a picture size: `axes_dim` channels turn with each coordinate."""

    def __init__(self, axes_dim: Sequence[int]) -> None:
        self._axes_dim = tuple(axes_dim)
        # by identity, which asks no device and compares no numbers; the positions are kept so that none takes its place
        self._kept: OrderedDict[tuple[int, torch.device], tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, ids: Tensor, device: torch.device) -> Tensor:
        """(tokens, head width / 2, 2) in float32: cosine and sine, for positions `ids` (tokens, axes) on the CPU."""
        key = (id(ids), device)
        if key not in self._kept:
            # ordinary tensors even where inference mode is on: training may use the same ones later
            with torch.inference_mode(mode=False), torch.no_grad():
                self._kept[key] = (ids, self._make(ids).to(device))
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT_TABLES:
            self._kept.popitem(last=False)
        return self._kept[key][1]

    def _make(self, ids: Tensor) -> Tensor:
        # in float64 and on the CPU, since some accelerators have no float64 and large angles need its digits
        angles = []
        for axis, width in enumerate(self._axes_dim):
            periods = _ROTARY_BASE ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
            angles.append(ids[:, axis].double()[:, None] * (1.0 / periods))
        joined = torch.cat(angles, dim=-1)
        return torch.stack([joined.cos(), joined.sin()], dim=-1).float()


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The layer norm of `x` (rows, tokens, width) without weights of its own, times `scale`, plus `shift`."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), scale)


def products_along_tokens(*products: tuple[nn.Module, Tensor]) -> Tensor:
    """Layers' products, each of its own tokens (rows, tokens, in), as one tensor (rows, tokens of all, out)."""
    layers, inputs = zip(*products, strict=True)
    if torch.compiler.is_compiling() and len(inputs[0]) == 1:
        # of one row they lie behind each other in memory, so each product can be written where it belongs
        join: Callable[..., Tensor] | None = getattr(layers[0], "along_tokens", None)
        if join is not None:
            return join(layers, inputs)
        return torch.cat([layer(x[0]) for layer, x in products]).unsqueeze(0)
    return torch.cat([layer(x) for layer, x in products], dim=1)


def side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """Channels (rows, tokens, channels of each) beside each other, as a new tensor."""
    if not torch.compiler.is_compiling():
        return torch.cat([first, second], dim=-1)
    # one pass, where the compiler makes two of `cat` on some devices
    return F.pad(first, (0, second.shape[-1])) + F.pad(second, (first.shape[-1], 0))


#: What normalised queries and keys are multiplied with: (2, 1, 1, 1, head width), or two vectors in a functional run.
NormScales = Tensor | tuple[Tensor, Tensor]


def norm_scales(of_query: Tensor, of_key: Tensor) -> NormScales:
    """The scales of queries and of keys in float32.

    Queries are divided by the square root of their width here, so that attention need not scale its scores.
    """
    query, key = of_query.float() * of_query.shape[-1] ** -0.5, of_key.float()
    # apart, the compiler multiplies them where they are used; joined, they would be a kernel and a buffer of their own
    return (query, key) if is_functional() else torch.stack([query, key])[:, None, None, None]


def normalised_and_turned(
    pair: Tensor, scales: Sequence[tuple[int, NormScales]], rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """RMS norm and rotary embedding of queries and keys, `pair` (2, rows, heads, tokens, head width), in one dtype.

    Computed in float32 and rounded once. `scales` are for so many tokens each, in order (`norm_scales`); `rotation` is
    that of `RotaryTables`.
    """
    if is_functional() or pair.device.type not in {"cpu", "cuda", "meta"}:
        query, key = (
            _turned_functionally(pair[side], [(length, scale[side]) for length, scale in scales], rotation)
            for side in (0, 1)
        )
        return query, key
    if pair.device.type == "cpu":
        turned = _turned_in_few_passes(pair, scales, rotation)
    else:
        turned = _turned_in_few_launches(pair, scales, rotation)
    return turned[0], turned[1]


def _turned_functionally(heads: Tensor, scales: Sequence[tuple[int, Tensor]], rotation: Tensor) -> Tensor:
    """Of queries or of keys alone, (rows, heads, tokens, head width): nothing is joined, so that it is one kernel."""
    # token after token, as they lie in memory: attention answers in the order of its queries, and what follows it
    # wants a token's heads together
    tokens = heads.transpose(1, 2)
    normed = F.rms_norm(tokens.float(), tokens.shape[-1:], eps=NORM_EPS)
    scaled = normed * _scale_of_each_token(scales, tokens)
    pairs = scaled.view(*scaled.shape[:-1], -1, 2)
    cosine, sine = rotation[:, None, :, :1], rotation[:, None, :, 1:]
    # (a, b) turns to (a*cos - b*sin, b*cos + a*sin): each number, and the other one of its pair
    signs = 2 * torch.arange(2, device=heads.device) - 1
    return (pairs * cosine + pairs.flip(-1) * (sine * signs)).flatten(-2).to(heads.dtype).transpose(1, 2)


def _scale_of_each_token(scales: Sequence[tuple[int, Tensor]], heads: Tensor) -> Tensor:
    chosen, start = scales[0][1].flatten(), 0
    tokens = torch.arange(heads.shape[1], device=heads.device)[:, None, None]
    for (length, _), (_, scale) in pairwise(scales):
        start += length
        chosen = torch.where(tokens < start, chosen, scale.flatten())
    return chosen


def _turned_in_few_passes(pair: Tensor, scales: Sequence[tuple[int, NormScales]], rotation: Tensor) -> Tensor:
    # a copy whatever the dtype is (`.float()` would hand back float32 itself), since what follows writes in place
    exact = torch.empty(pair.shape).copy_(pair)
    mean_square = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(pair.shape[-1])
    inverse = mean_square.add_(NORM_EPS).rsqrt_()
    _scale_and_turn_in_place(exact, scales, rotation)
    # the norm divides a vector by one number, which may as well come last, in the pass that rounds
    return torch.mul(exact, inverse, out=torch.empty(pair.shape, dtype=pair.dtype))


def _turned_in_few_launches(pair: Tensor, scales: Sequence[tuple[int, NormScales]], rotation: Tensor) -> Tensor:
    exact = F.rms_norm(pair.to(torch.float32, memory_format=torch.contiguous_format), pair.shape[-1:], eps=NORM_EPS)
    _scale_and_turn_in_place(exact, scales, rotation)
    return exact.to(pair.dtype)


def _scale_and_turn_in_place(exact: Tensor, scales: Sequence[tuple[int, NormScales]], rotation: Tensor) -> None:
    start = 0
    for length, scale in scales:
        assert isinstance(scale, Tensor)  # noqa: S101 - for the type checker: joined wherever memory is written over
        exact[..., start : start + length, :].mul_(scale)
        start += length
    # a turn by an angle is a product with a complex number of length 1
    torch.view_as_complex(exact.view(*exact.shape[:-1], -1, 2)).mul_(torch.view_as_complex(rotation))


def _torchs_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


@dataclass(slots=True)
class _Attention:
    """The kernel that this process uses: the whole of it, as torch's choice among its own is."""

    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] = _torchs_attention


_attention: Final = _Attention()


def use_attention(kernel: Callable[[Tensor, Tensor, Tensor], Tensor] | None) -> None:
    """Let another kernel than torch's compute attention from now on, or torch's again (None)."""
    _attention.kernel = kernel or _torchs_attention


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention (rows, heads, tokens, head width); the queries are scaled already."""
    short = query.shape[-2] <= _LONGEST_PLAIN_ATTENTION
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and short:
        return torch.matmul(torch.matmul(query, key.transpose(-1, -2)).softmax(-1), value)
    return _attention.kernel(query, key, value)


def gelu(x: Tensor, into: Tensor) -> Tensor:
    """GELU in its tanh form, written into `into`, which may be `x`, unless the run is functional; returns it."""
    if is_functional():
        return F.gelu(x, approximate="tanh")
    if x.device.type == "cpu":
        _gelu_in_chunks(x, into)
    else:
        torch.ops.aten.gelu.out(x, approximate="tanh", out=into)
    return into


def _gelu_in_chunks(x: Tensor, into: Tensor) -> None:
    """x*sigmoid(2z), by tanh(z) = 2*sigmoid(2z) - 1: half the time of torch's, whose tanh is exact to the last bit.

    In float32 whatever the inputs are, chunk by chunk so that it stays in the cache.
    """
    # flattening must not copy: `into` is a tensor, or the last columns of one, whose leading dimensions are contiguous
    rows = max(1, _GELU_CHUNK // x.shape[-1])
    parts, targets = torch.split(x.flatten(0, -2), rows), torch.split(into.flatten(0, -2), rows)
    # addcmul takes a tensor only, and broadcasts it
    linear = torch.tensor(_GELU_LINEAR)
    for part, target in zip(parts, targets, strict=True):
        exact = part.float()
        signal = torch.addcmul(linear, exact, exact, value=_GELU_CUBIC).mul_(exact).sigmoid_()
        torch.mul(exact, signal, out=target)


class PackedLinear(nn.Linear):
    """A linear layer with the parameters of another, which must not change any more, multiplied from a second form.

    torch hands each product to oneDNN with the weights as a matrix, which oneDNN writes anew in blocks of its own
    before it multiplies, and it copies the bias over the whole output first. Beside a small model's few hundred tokens
    both take a tenth to a fifth of the product. Here the blocks are written once, and the bias is added where the sums
    are rounded: the same sums, to the last bit (`tests/engine/test_flux_kernels.py`).

    Source: oneDNN's "Memory format propagation",
    https://uxlfoundation.github.io/oneDNN/page_memory_format_propagation_cpp.html.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        # no buffer: no state dict and no `.to` knows this form
        self._blocks: Any = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _VECTORS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if is_functional():
            return F.linear(x, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._blocks, self.bias, "none", [], "")
        return product


def gains_by_packing(layer: nn.Module) -> bool:
    """Whether a layer's products are oneDNN's, and so short that the form of its weights matters."""
    # torch's types leave the question out
    if type(layer) is not nn.Linear or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # without the instructions, torch multiplies bfloat16 by other means, and refuses these
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.numel() <= _LARGEST_PACKED
