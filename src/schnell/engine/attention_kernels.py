"""Which of the kernels that compute attention is fastest on this card, measured once at the start.

torch has several, takes the first that accepts the inputs, and its order is no order of speed: cuDNN's is the fastest
on Hopper, flash's on Ada. FlashAttention-3 is a package of its own, taken where somebody has installed it. On a CPU
there is nothing to choose (`flux_kernels.attention`).
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import Any, Final

import structlog
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from schnell.engine.accelerator import start_timing
from schnell.engine.flux_kernels import use_attention

log = structlog.get_logger(__name__)

#: Queries that are scaled already, keys and values (rows, heads, tokens, head width) to what they mix to.
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
#: torch's own by name; `efficient` stays on for what the others refuse, such as T5's mask.
_TORCHS: Final = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
#: How far a kernel may be from the exact result, relative: three times what bfloat16 itself rounds by.
_TOLERANCE: Final = 0.02
_TIMES: Final = 5


def use_fastest_attention(device: torch.device, heads: int, head_width: int, tokens: int) -> str | None:
    """Measure the kernels on a card at the model's own size, and let the fastest run from now on; gives its name.

    For the whole process, since torch's choice is. None where there is nothing to choose.
    """
    if device.type != "cuda":
        return None
    chosen = _fastest_on(device, heads, head_width, tokens)
    use_attention(flash_attention_3() if chosen == "fa3" else None)
    # torch goes by its own order among those that are on
    torch.backends.cuda.enable_cudnn_sdp(chosen == "cudnn")
    torch.backends.cuda.enable_flash_sdp(chosen != "cudnn")
    return chosen


@cache  # engines of one card, and its two precisions, measure once
def _fastest_on(device: torch.device, heads: int, head_width: int, tokens: int) -> str | None:
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, 1, heads, tokens, head_width)
    query, key, value = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16).unbind()
    query = query * head_width**-0.5
    seconds = measure_kernels(candidates(), (query, key, value), lambda call: _seconds(device, call))
    log.info("attention kernels", device=str(device), milliseconds={name: 1e3 * each for name, each in seconds.items()})
    return min(seconds, key=lambda name: seconds[name]) if seconds else None


def candidates() -> dict[str, Kernel]:
    """The kernels that there are, by name."""
    found: dict[str, Kernel] = {name: _on(backend) for name, backend in _TORCHS.items()}
    if find_spec("flash_attn_interface") is not None:
        found["fa3"] = flash_attention_3()
    return found


def measure_kernels(
    kernels: Mapping[str, Kernel], inputs: tuple[Tensor, Tensor, Tensor], seconds_of: Callable[[Any], float]
) -> dict[str, float]:
    """Seconds of each kernel that takes these inputs and computes what attention is; the others are left out."""
    # one head is enough to tell a wrong result, and the exact scores of all would not fit into a small card
    exact = _exactly(*(each[:, :1].float() for each in inputs))
    found = {}
    for name, kernel in kernels.items():
        try:
            result = kernel(*inputs)
            error = float((result[:, :1].float() - exact).norm() / exact.norm())
            if error <= _TOLERANCE:
                found[name] = seconds_of(partial(kernel, *inputs))
            else:
                log.warning("an attention kernel computes something else", kernel=name, error=error)
        except (RuntimeError, ImportError) as error:
            log.info("an attention kernel is not for this card", kernel=name, error=str(error).splitlines()[0])
    return found


def _exactly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.matmul(torch.matmul(query, key.transpose(-1, -2)).softmax(-1), value)


def _on(backend: SDPBackend) -> Kernel:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value, scale=1.0)

    return attend


@cache  # an operator can be defined once
def flash_attention_3() -> Kernel:
    """FlashAttention-3 as an operator of ours: a compiled block calls it and does not look into it."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kernel: Any = import_module("flash_attn_interface").flash_attn_func
        # tokens come before heads there
        result = kernel(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), softmax_scale=1.0)
        # older releases give the logarithms of the sums, too
        mixed: Tensor = result[0] if isinstance(result, tuple) else result
        return mixed.transpose(1, 2).contiguous()

    operator = torch.library.custom_op("schnell::flash_attention_3", attend, mutates_args=())
    operator.register_fake(lambda query, _key, _value: torch.empty_like(query, memory_format=torch.contiguous_format))
    return operator


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    def once() -> float:
        timing = start_timing(device)
        call()
        return timing()

    return median(once() for _ in range(_TIMES))
