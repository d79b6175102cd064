"""Steps that every layer with computed weights begins with."""

from collections.abc import Sequence

from torch import Tensor, nn

from schnell_mini import layout


def clear(*layers: nn.Linear) -> None:
    """Zero weights and biases."""
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def open_gate(linear: nn.Linear) -> None:
    """Set a single block's modulation to shift 0, scale 0 and gate 1 whatever the conditioning."""
    clear(linear)
    linear.bias[2 * linear.in_features :] = 1.0


def read_channels(rows: Tensor, channels: Sequence[int], weights: Tensor) -> None:
    """Let rows `[..., width]` of a layer's weight read channels with weights `[..., count]`.

    The LayerNorm before the layer subtracts the mean over all channels. The channel that held zero (`layout.ZERO`) then
    holds minus that mean, so weighing it by minus the weights' sum gives the subtracted part back.
    """
    rows[..., list(channels)] = weights.to(rows)
    rows[..., layout.ZERO] = -weights.sum(-1).to(rows)
