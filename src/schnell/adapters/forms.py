"""What an adapter does to one linear layer, in the three forms that the engine runs: LoRA, DoRA and LoKr.

Scales are inside the numbers already: a form is used at scale 1, times the scale that a request asks for.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from schnell.adapters.shape import LinearSize
from schnell.adapters.tensors import Array

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """The low-rank product b @ a, with `a` [rank, in] and `b` [out, rank]."""

    a: Array
    b: Array

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return int(self.a.shape[0])

    @property
    def size(self) -> LinearSize:
        """The linear layer's output and input features."""
        return LinearSize(int(self.b.shape[0]), int(self.a.shape[1]))


@dataclass(frozen=True, slots=True, eq=False)
class LowRank(_Product):
    """LoRA (Hu et al., arXiv:2106.09685): delta [out, in] = b @ a, alpha / rank being inside `b`."""


@dataclass(frozen=True, slots=True, eq=False)
class Dora(_Product):
    """Weight-decomposed low rank (Liu et al., arXiv:2402.09353): rows of W + b @ a get the norms in `magnitude` [out].

    delta [out, in] = magnitude * (W + b @ a) / |W + b @ a| - W, with norms taken over the inputs.
    """

    magnitude: Array


@dataclass(frozen=True, slots=True, eq=False)
class Lokr:
    """LoKr of LyCORIS (Yeh et al., arXiv:2309.14859): a Kronecker product, or some rows of one.

    delta [out_features, b*d] = kron(w1, w2)[start : start + out_features], with w1 [a, b] and w2 [c, d]. The right
    factor is `w2`, or else `w2_a` [c, r] @ `w2_b` [r, d]. `start` and `out_features` matter only for a part cut from a
    fused layer where the cut lies inside a row of w1; elsewhere the product is the whole delta.
    """

    w1: Array
    w2: Array | None
    w2_a: Array | None
    w2_b: Array | None
    start: int
    out_features: int

    @property
    def rank(self) -> int:
        """The right factor's inner dimension; 0 where it is stored whole."""
        return 0 if self.w2_a is None else int(self.w2_a.shape[1])

    @property
    def size(self) -> LinearSize:
        """The linear layer's output and input features."""
        right = self.w2 if self.w2 is not None else self.w2_b
        assert right is not None  # noqa: S101 - for the type checker: the reader builds no third case
        return LinearSize(self.out_features, int(self.w1.shape[1]) * int(right.shape[1]))


Form: TypeAlias = LowRank | Dora | Lokr
