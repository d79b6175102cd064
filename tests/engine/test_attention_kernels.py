import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from schnell.engine.attention_kernels import flash_attention_3, measure_kernels, use_fastest_attention
from schnell.engine.flux_kernels import attention, use_attention

INPUTS = tuple(torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


def wrong(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return exact(query, key, value) * 1.1


def refuses(*_: Tensor) -> Tensor:
    raise RuntimeError("No available kernel. Aborting execution.")


def times(seconds: list[float]) -> object:
    return lambda _: seconds.pop(0)


def test_kernels_that_refuse_or_compute_something_else_are_left_out() -> None:
    kernels = {"refuses": refuses, "wrong": wrong, "slow": exact, "fast": exact}
    query, key, value = INPUTS
    found = measure_kernels(kernels, (query, key, value), times([2.0, 1.0]))  # type: ignore[arg-type]
    assert found == {"slow": 2.0, "fast": 1.0}


def test_on_a_cpu_nothing_is_measured_or_changed() -> None:
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    assert use_fastest_attention(torch.device("cpu"), 2, 16, 9) is None
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()) == before
    assert torch.equal(attention(*INPUTS), exact(*INPUTS))


def test_another_kernel_is_used_until_torchs_is_asked_for_again() -> None:
    use_attention(wrong)
    try:
        assert torch.equal(attention(*INPUTS), wrong(*INPUTS))
    finally:
        use_attention(None)
    assert torch.equal(attention(*INPUTS), exact(*INPUTS))


@pytest.mark.parametrize("gives_sums", [False, True])
def test_flash_attention_3_gets_tokens_before_heads_and_is_one_operator_to_the_compiler(
    gives_sums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("flash_attn_interface")

    def flash_attn_func(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float) -> object:
        assert query.shape == (1, 9, 2, 16)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=softmax_scale
        ).transpose(1, 2)
        return (mixed, None) if gives_sums else mixed

    module.__dict__["flash_attn_func"] = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    kernel = flash_attention_3()
    assert torch.allclose(kernel(*INPUTS), exact(*INPUTS))
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda *inputs: kernel(*inputs) + 1, backend=backend, fullgraph=True)
    assert torch.allclose(compiled(*INPUTS), exact(*INPUTS) + 1)
    [graph] = graphs
    assert any("flash_attention_3" in str(node.target) for node in graph.graph.nodes)
