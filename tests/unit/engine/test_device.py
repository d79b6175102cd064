from collections.abc import Callable, Mapping

import pytest
import torch

from schnell.engine.device import BFLOAT16, FLOAT32, choose_precision, has_fast_bfloat16

CPU = torch.device("cpu")
Pretend = Callable[[Mapping[str, bool | str]], None]

AMD = {"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True, "amx_bf16": False}
INTEL_WITH_AMX = {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}
INTEL_WITHOUT_AMX = {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}
OLDER = {"cpu_name": "AMD EPYC 7R13", "avx512_bf16": False, "amx_bf16": False}
ARM = {"cpu_name": "ARM Neoverse-N1", "bf16": False}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Make torch report another processor."""
    return lambda processor: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)


@pytest.mark.parametrize("processor", [AMD, INTEL_WITH_AMX])
def test_a_processor_that_multiplies_bfloat16_faster_uses_it_for_go_fast_alone(
    processor: Mapping[str, bool | str], pretend: Pretend
) -> None:
    pretend(processor)
    assert choose_precision(CPU, go_fast=True) == BFLOAT16
    assert choose_precision(CPU, go_fast=False) == FLOAT32


@pytest.mark.parametrize("processor", [INTEL_WITHOUT_AMX, OLDER, ARM])
def test_where_bfloat16_would_be_slower_go_fast_computes_in_float32(
    processor: Mapping[str, bool | str], pretend: Pretend
) -> None:
    pretend(processor)
    assert choose_precision(CPU, go_fast=True) == FLOAT32


def test_this_processor_answers() -> None:
    """torch's own answer has the fields that are read."""
    assert {"cpu_name", "architecture"} <= set(torch.cpu.get_capabilities())
    assert isinstance(has_fast_bfloat16(), bool)
