"""What this card can do at all at FLUX's shapes: matrix products, memory, the bus, launches, attention kernels."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from schnell.benchmarks.gpu.lab import GIB, Figures, Lab

#: Kernels of torch's attention by name. FA3 comes with a package of its own.
_KERNELS: Final[Mapping[str, SDPBackend]] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def ceilings(lab: Lab) -> Figures:
    """TFLOP/s of FLUX's products in bfloat16 and fp8, GB/s in the card and over the bus, microseconds a launch."""
    tokens, width = _tokens(lab), lab.shape.width
    shapes = {"qkv": (3 * width, width), "up": (4 * width, width), "down": (width, 4 * width)}
    shapes |= {"linear1": (7 * width, width), "linear2": (width, 5 * width)}
    for name, (out, into) in shapes.items():
        yield lab.attempt(f"bf16_{name}_tflops", partial(_product_tflops, lab, tokens, out, into))
        yield lab.attempt(f"fp8_{name}_tflops", partial(_fp8_tflops, lab, tokens, out, into))
    yield lab.attempt("memory_gb_s", partial(_copy_gb_s, lab))
    yield lab.attempt("host_to_device_gb_s", partial(_upload_gb_s, lab))
    yield lab.attempt("launch_us", partial(_launch_us, lab))
    yield from _attention(lab, tokens)


def _tokens(lab: Lab) -> int:
    side = 16 * lab.shape.draw_scale  # pixels of a token
    return lab.shape.middle.width * lab.shape.middle.height // side**2 + lab.shape.text_tokens


def _product_tflops(lab: Lab, tokens: int, out: int, into: int) -> float:
    # random, since a card multiplies zeros faster
    x = torch.randn(tokens, into, device=lab.device, dtype=torch.bfloat16)
    weight = torch.randn(out, into, device=lab.device, dtype=torch.bfloat16)
    return _tflops(lab, lambda: F.linear(x, weight), tokens, out, into)


def _fp8_tflops(lab: Lab, tokens: int, out: int, into: int) -> float:
    """The product alone, scales by rows: what it costs to round the inputs is part of a step, not of the ceiling."""
    x = torch.randn(tokens, into, device=lab.device).to(torch.float8_e4m3fn)
    weight = torch.randn(out, into, device=lab.device).to(torch.float8_e4m3fn)
    of_rows, of_columns = torch.ones(tokens, 1, device=lab.device), torch.ones(1, out, device=lab.device)

    def product() -> Tensor:
        # under this name in every release that may meet us
        scaled: Tensor = torch._scaled_mm(
            x, weight.t(), scale_a=of_rows, scale_b=of_columns, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return scaled

    return _tflops(lab, product, tokens, out, into)


def _tflops(lab: Lab, product: Callable[[], object], tokens: int, out: int, into: int) -> float:
    return 2 * tokens * out * into / lab.milliseconds(product, times=10) / 1e9


def _copy_gb_s(lab: Lab) -> float:
    """Within the card, bytes read and bytes written both counted."""
    source = torch.empty(int(GIB if lab.on_cuda else 1 << 20), dtype=torch.uint8, device=lab.device).fill_(7)
    target = torch.empty_like(source)
    return 2 * source.nbytes / lab.milliseconds(lambda: target.copy_(source)) / 1e6


def _upload_gb_s(lab: Lab) -> float:
    """From pinned host memory, as LoRA factors come."""
    source = torch.empty(int(GIB / 4 if lab.on_cuda else 1 << 20), dtype=torch.uint8, pin_memory=lab.on_cuda)
    target = torch.empty(source.shape, dtype=torch.uint8, device=lab.device)
    return source.nbytes / lab.milliseconds(lambda: target.copy_(source, non_blocking=True)) / 1e6


def _launch_us(lab: Lab) -> float:
    x, count = torch.zeros(1, device=lab.device), 1000

    def launch() -> None:
        for _ in range(count):
            x.add_(1)

    return lab.milliseconds(launch) * 1e3 / count


def _attention(lab: Lab, tokens: int) -> Figures:
    """Milliseconds of one block's attention by kernel, and how far each is from the exact result."""
    heads = int(lab.shape.transformer["num_attention_heads"])
    query, key, value = (
        torch.randn(1, heads, tokens, lab.shape.width // heads, device=lab.device, dtype=torch.bfloat16)
        for _ in range(3)
    )
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    for name, kernel in _KERNELS.items():
        yield lab.attempt(f"attention_{name}", partial(_kernel, lab, kernel, (query, key, value), exact))
    yield lab.attempt("attention_fa3", partial(_fa3, lab, (query, key, value), exact))


def _kernel(lab: Lab, kernel: SDPBackend, inputs: tuple[Tensor, Tensor, Tensor], exact: Tensor) -> dict[str, float]:
    with sdpa_kernel(kernel):
        return _timed(lab, lambda: F.scaled_dot_product_attention(*inputs), exact)


def _fa3(lab: Lab, inputs: tuple[Tensor, Tensor, Tensor], exact: Tensor) -> dict[str, float]:
    # installed by those who want it; there is no wheel of it for most machines
    flash_attn_func: Any = import_module("flash_attn_interface").flash_attn_func
    # it wants tokens before heads
    query, key, value = (each.transpose(1, 2) for each in inputs)
    result = flash_attn_func(query, key, value)
    first = result[0] if isinstance(result, tuple) else result
    return _timed(lab, lambda: flash_attn_func(query, key, value), exact, first.transpose(1, 2))


def _timed(lab: Lab, call: Callable[[], Tensor], exact: Tensor, result: Tensor | None = None) -> dict[str, float]:
    got = call() if result is None else result
    error = float((got.float() - exact).norm() / exact.norm())
    return {"ms": lab.milliseconds(call), "relative_error": error}
