"""What would break on devices that no test machine has: Apple's GPUs know no float64, and every GPU returns at once."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import schnell
from schnell.engine.accelerator import is_alive, make_current, release_memory, synchronize
from schnell.engine.denoise import Drawing, denoise_step
from schnell.engine.pictures import PreviewFit
from schnell.engine.text import PromptEmbedding
from schnell.spec import Size

SOURCE = Path(schnell.__file__).parent


class AppleTensor(Tensor):
    """A tensor that refuses what one on an Apple GPU refuses, until it is copied to the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.numpy:
            raise TypeError("can't convert mps:0 device type tensor to numpy")
        found = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if func is Tensor.cpu:
            return found.as_subclass(Tensor)
        if isinstance(found, Tensor) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return found


def apple_drawing() -> Drawing:
    latents, states = (torch.randn(16, 64).as_subclass(AppleTensor) for _ in range(2))
    prompt = PromptEmbedding(states, states[0], was_truncated=False)
    return Drawing(latents, (1.0, 0.5, 0.0), 0, Size(4, 4), prompt)


def transformer(latents: Tensor, _states: Tensor, _positions: Tensor, timestep: Tensor, _pooled: Tensor) -> Tensor:
    return latents * timestep[:, None, None]


def test_the_stand_in_refuses_float64_and_numpy_until_it_is_copied() -> None:
    latents = apple_drawing().latents
    with pytest.raises(TypeError, match="float64"):
        latents.double()
    with pytest.raises(TypeError, match="numpy"):
        (latents + 1).numpy()
    assert latents.cpu().double().numpy().dtype == np.float64


def test_steps_and_previews_run_without_float64_on_the_gpu() -> None:
    fit = PreviewFit()
    drawings = denoise_step(transformer, [apple_drawing(), apple_drawing()])
    assert all(isinstance(drawing.latents, AppleTensor) for drawing in drawings)
    lesson = fit.lesson(drawings[0])
    assert lesson is not None
    fit.learn(lesson, Image.new("RGB", (64, 64), (200, 20, 20)))
    assert fit.paint(replace(drawings[1], estimate=drawings[0].latents), Size(64, 64)).startswith(b"\x89PNG")


def test_torchs_float64_is_asked_for_on_the_cpu_alone() -> None:
    lines = {
        (path.name, line.strip())
        for folder in ("engine", "serving")
        for path in (SOURCE / folder).glob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"torch\.float64|torch\.double|\.double\(\)", line)
    }
    assert lines == {
        ("denoise.py", "levels = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float().tolist()"),
        # positions and the angles made of them are on the CPU until they are rounded
        ("flux_kernels.py", "periods = _ROTARY_BASE ** (torch.arange(0, width, 2, dtype=torch.float64) / width)"),
        ("flux_kernels.py", "angles.append(ids[:, axis].double()[:, None] * (1.0 / periods))"),
    }


def test_a_cpu_is_always_done_alive_and_current() -> None:
    cpu = torch.device("cpu")
    for harmless in (make_current, synchronize, release_memory):
        harmless(cpu)
    assert is_alive(cpu)


def test_a_device_whose_every_call_raises_is_dead_and_a_full_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ]

    def ones(*_: object, **__: object) -> Tensor:
        raise errors.pop(0)

    monkeypatch.setattr(torch, "ones", ones)
    assert not is_alive(torch.device("cuda:0"))
    assert is_alive(torch.device("cuda:0"))


def test_memory_is_given_back_to_the_device_that_it_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            asked.append(str(device))

        def __enter__(self) -> None:
            return

        def __exit__(self, *_: object) -> None:
            return

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("emptied"))
    release_memory(torch.device("cuda:1"))
    assert asked == ["cuda:1", "emptied"]
