"""Factors measured in what their layers read and in what comes of what they write.

Adam's steps have one length in every coordinate. Where channels of a layer differ a hundredfold, the small ones are
hardly learned within minutes, and what the large ones write shakes the picture. So each input channel is divided by its
root mean square, and output channels that the loss depends on more than on most are damped: the diagonal of the
Kronecker-factored curvature (Martens and Grosse, arXiv:1503.05671), measured once before the training. Files hold the
plain factors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from schnell.training.lessons import Lessons, Student
from schnell.training.low_rank import LowRankLinear

_BATCHES: Final = 6
#: Smaller parts of a layer's typical channel are no measure: nothing is read there, or nothing follows from it.
_LEAST: Final = 0.02


def precondition(student: Student, lessons: Lessons, batch_size: int) -> None:
    """Measure every trained layer over some batches, while its factors still change nothing, and set their units."""
    layers = [module for module in student.transformer.modules() if isinstance(module, LowRankLinear)]
    with _measuring(layers) as measured:
        for _ in range(_BATCHES):
            torch.autograd.backward(lessons.loss(student, batch_size))
    for parameters in student.layers.values():
        parameters.zero_grad(set_to_none=True)
    for layer, moments in zip(layers, measured, strict=True):
        inputs, outputs = moments.read.sqrt(), moments.written.sqrt()
        reaching = outputs[outputs > _LEAST * outputs.max()]
        damping = (reaching.median() / outputs.clamp_min(1e-30)).clamp_max(1.0) if len(reaching) else outputs + 1
        for part in layer.factors():
            units = 1 / inputs.clamp_min(_LEAST * inputs.median())
            part.set_units(units, damping[part.rows.start : part.rows.stop])


@dataclass(slots=True)
class _Moments:
    """Mean squares over tokens: of a layer's inputs, and of the loss's gradients by its outputs."""

    read: Tensor
    written: Tensor

    def measure(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A hook for the layer's forward pass."""
        self.read = self.read.to(output.device) + _mean_squares(inputs[0])

        def add(gradient: Tensor) -> None:
            self.written = self.written.to(gradient.device) + _mean_squares(gradient)

        output.register_hook(add)  # type: ignore[no-untyped-call]


@contextmanager
def _measuring(layers: list[LowRankLinear]) -> Iterator[list[_Moments]]:
    found = [_Moments(torch.zeros(each.in_features), torch.zeros(each.out_features)) for each in layers]
    handles = [layer.register_forward_hook(each.measure) for layer, each in zip(layers, found, strict=True)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _mean_squares(values: Tensor) -> Tensor:
    return values.detach().float().flatten(0, -2).square().mean(0) / _BATCHES
