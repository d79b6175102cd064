"""What all layers that are written by hand begin with."""

from collections.abc import Sequence

from torch import Tensor, nn

from schnell_mini import layout


def clear(*layers: nn.Linear) -> None:
    """Zero weights and biases."""
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def open_gate(linear: nn.Linear) -> None:
    """A single block's modulation: it hears its tokens as they are and adds all that it says."""
    clear(linear)
    linear.bias[2 * linear.in_features :] = 1.0


def read_channels(rows: Tensor, channels: Sequence[int], weights: Tensor) -> None:
    """Let rows `[..., width]` of a layer read channels with weights `[..., count]`.

    The norm before the layer took the mean over all channels away; the empty channel tells how much that was.
    """
    rows[..., list(channels)] = weights.to(rows)
    rows[..., layout.ZERO] = -weights.sum(-1).to(rows)
