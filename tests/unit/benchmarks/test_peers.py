from dataclasses import dataclass
from typing import Any, cast

import diffusers
import pytest
import torch

from schnell.benchmarks.peers import peer_dtype, stock_pipeline
from schnell.engine.device import BFLOAT16, Precision
from schnell.engine.engine import Engine
from schnell.models.catalogue import find_model


@dataclass
class EngineOn:
    device: torch.device

    def precision_for(self, *, go_fast: bool) -> Precision:  # noqa: ARG002 - the engine's form
        return BFLOAT16


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda:1", torch.bfloat16), ("mps", torch.bfloat16), ("cpu", torch.float32)]
)
def test_the_peer_computes_in_our_number_format_where_that_is_fair(device: str, dtype: torch.dtype) -> None:
    assert peer_dtype(cast("Engine", EngineOn(torch.device(device)))) == dtype


def test_the_peer_is_put_on_our_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Pipeline:
        def to(self, device: torch.device) -> "Pipeline":
            seen.append(device)
            return self

        def set_progress_bar_config(self, *, disable: bool) -> None:
            assert disable

    def read(_: object, *, dtype: torch.dtype) -> Pipeline:
        seen.append(dtype)
        return Pipeline()

    monkeypatch.setattr(diffusers.FluxPipeline, "from_pretrained", read)
    stock_pipeline(find_model("schnell-mini"), torch.bfloat16, torch.device("cuda:1"))
    assert seen == [torch.bfloat16, torch.device("cuda:1")]
