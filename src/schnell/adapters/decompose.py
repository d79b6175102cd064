"""A dense delta as a product of two thin matrices, with the share of its energy that they keep.

Energy is the squared Frobenius norm. The truncated SVD is the best product of a given rank (Eckart and Young, 1936). We
find it by randomised subspace iteration (Halko, Martinsson and Tropp, arXiv:0909.4061, algorithms 4.4, 5.1): a few
products with a sketch of 144 columns instead of a full SVD of 3072 x 12288, which takes minutes. The energy kept is not
estimated: with Q orthonormal, ‖QᵀM‖² is exactly what the product holds of ‖M‖².
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from schnell.adapters.forms import Floats

#: Of what the engine runs: slots have room for all of a rank, used or not.
MAX_RANK: Final = 128
#: A product that loses more than a thousandth of a delta is refused rather than served as something else.
MIN_ENERGY: Final = 0.999
#: 512 MiB in float32, twice the largest layer of FLUX.1 in any naming (21504 x 3072).
MAX_DENSE_ELEMENTS: Final = 2**27
#: Columns of the sketch beyond the rank, and rounds that sharpen it; the paper finds 5-10 and 1-2 enough.
_OVERSAMPLING: Final = 16
_POWER_STEPS: Final = 2
#: Rows that are squared at once, so that float64 does not double a large matrix's memory.
_CHUNK_ROWS: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Decomposition:
    """A product `up` [out, rank] @ `down` [rank, in], and the share (0-1) of the matrix's energy that it keeps."""

    up: Floats
    down: Floats
    energy: float

    @property
    def sufficient(self) -> bool:
        """Whether enough is kept for the adapter to act as it was trained."""
        return self.energy >= MIN_ENERGY


def decompose(matrix: Floats, max_rank: int = MAX_RANK) -> Decomposition:
    """The product of the smallest rank that keeps 99.9% of `matrix` [out, in], or of `max_rank` where none does."""
    basis = _dominant_basis(matrix, min(max_rank + _OVERSAMPLING, *matrix.shape))
    projected = basis.T @ matrix
    return _truncate(basis, projected, _energy(matrix), max_rank)


def compress(up: Floats, down: Floats, max_rank: int = MAX_RANK) -> Decomposition:
    """The same for a product `up` [out, r] @ `down` [r, in] of larger rank, without forming it."""
    basis, triangle = np.linalg.qr(up.astype(np.float64))
    projected = (triangle @ down.astype(np.float64)).astype(np.float32)
    return _truncate(basis.astype(np.float32), projected, _energy(projected), max_rank)


def compress_kronecker(left: Floats, right: Floats, max_rank: int = MAX_RANK) -> Decomposition:
    """The same for kron(`left`, `right`), without forming it: its singular values are the products of the factors'."""
    of_left, of_right = (np.linalg.svd(each.astype(np.float64), full_matrices=False) for each in (left, right))
    values = np.outer(of_left.S, of_right.S)
    order = np.argsort(values, axis=None)[::-1]
    energies = np.square(values.ravel()[order])
    total = float(energies.sum())
    kept = np.cumsum(energies) / total if total > 0 else np.ones_like(energies)
    rank = min(int(np.searchsorted(kept, MIN_ENERGY + 1e-6)) + 1, max_rank, len(kept))
    first, second = np.unravel_index(order[:rank], values.shape)
    up = (of_left.U[:, None, first] * of_right.U[None, :, second]).reshape(-1, rank) * values[first, second]
    down = (of_left.Vh[first, :, None] * of_right.Vh[second, None, :]).reshape(rank, -1)
    return Decomposition(up.astype(np.float32), down.astype(np.float32), float(min(kept[rank - 1], 1.0)))


def _dominant_basis(matrix: Floats, columns: int) -> Floats:
    # one fixed seed: the same file gives the same canonical file on every machine
    sketch = np.random.default_rng(0).standard_normal((matrix.shape[1], columns), np.float32)
    basis = np.linalg.qr(matrix @ sketch)[0]
    for _ in range(_POWER_STEPS):
        basis = np.linalg.qr(matrix.T @ basis)[0]
        basis = np.linalg.qr(matrix @ basis)[0]
    return basis


def _truncate(basis: Floats, projected: Floats, total: float, max_rank: int) -> Decomposition:
    # eigenvectors of the small Gram matrix in place of an SVD of the wide `projected`; it squares the singular values,
    # hence float64
    gram = projected.astype(np.float64) @ projected.astype(np.float64).T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    kept = np.cumsum(values) / total if total > 0 else np.ones_like(values)
    # a little more than is asked for, so that rounding `up` and `down` to float32 does not undercut it
    enough = int(np.searchsorted(kept, MIN_ENERGY + 1e-6)) + 1
    rank = min(enough, max_rank, len(values))
    turn = vectors[:, :rank].astype(np.float32)
    return Decomposition(basis @ turn, turn.T @ projected, float(min(kept[rank - 1], 1.0)))


def _energy(matrix: Floats) -> float:
    rows = range(0, matrix.shape[0], _CHUNK_ROWS)
    return float(sum(np.square(matrix[row : row + _CHUNK_ROWS], dtype=np.float64).sum() for row in rows))
