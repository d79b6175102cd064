"""What an adapter does to one linear layer, in the three forms that the engine runs."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from schnell.adapters.shape import LinearSize
from schnell.adapters.tensors import Array

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """delta = b @ a at scale 1: `a` [rank, in], `b` [out, rank]; alpha / rank is already inside `b`."""

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

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return int(self.a.nbytes + self.b.nbytes)

    def dense(self) -> Floats:
        """The whole delta [out, in] in fp32."""
        return np.asarray(self.b, np.float32) @ np.asarray(self.a, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Dora:
    """Weight-decomposed low rank (DoRA, arXiv 2402.09353): rows of W + b @ a get the norms in `magnitude` [out]."""

    a: Array
    b: Array
    magnitude: Array

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return int(self.a.shape[0])

    @property
    def size(self) -> LinearSize:
        """The linear layer's output and input features."""
        return LinearSize(int(self.b.shape[0]), int(self.a.shape[1]))

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return int(self.a.nbytes + self.b.nbytes + self.magnitude.nbytes)

    def dense(self, weight: Floats) -> Floats:
        """The whole delta [out, in] in fp32 at scale 1, for the base layer's `weight` [out, in]."""
        moved = weight + np.asarray(self.b, np.float32) @ np.asarray(self.a, np.float32)
        norms = np.linalg.norm(moved, axis=1)
        return np.asarray(moved * (np.asarray(self.magnitude, np.float32) / norms)[:, None] - weight, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Lokr:
    """delta = kron(w1, w2)[start : start + out], with w1 [a, b] and w2 [c, d], in = b·d (LyCORIS, arXiv 2309.14859).

    The right factor is `w2`, or else `w2_a` [c, r] @ `w2_b` [r, d]. `start` and `out_features` matter only for a part
    cut from a fused layer where the cut lies inside a row of w1; elsewhere the product is the whole delta.
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
    def right_shape(self) -> tuple[int, int]:
        """The right factor's rows and columns."""
        if self.w2 is not None:
            return int(self.w2.shape[0]), int(self.w2.shape[1])
        assert self.w2_a is not None  # noqa: S101 - for the type checker: the reader builds no third case
        assert self.w2_b is not None  # noqa: S101
        return int(self.w2_a.shape[0]), int(self.w2_b.shape[1])

    @property
    def size(self) -> LinearSize:
        """The linear layer's output and input features."""
        return LinearSize(self.out_features, int(self.w1.shape[1]) * self.right_shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return sum(int(part.nbytes) for part in (self.w1, self.w2, self.w2_a, self.w2_b) if part is not None)

    def dense(self) -> Floats:
        """The whole delta [out, in] in fp32."""
        right = np.asarray(self.w2, np.float32) if self.w2 is not None else self._right()
        return np.kron(np.asarray(self.w1, np.float32), right)[self.start : self.start + self.out_features]

    def _right(self) -> Floats:
        return np.asarray(self.w2_a, np.float32) @ np.asarray(self.w2_b, np.float32)


Form: TypeAlias = LowRank | Dora | Lokr
