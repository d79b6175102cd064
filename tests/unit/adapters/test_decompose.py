import numpy as np
import pytest

from schnell.adapters.decompose import compress, decompose


def _spectrum(values: np.ndarray, out: int = 300, into: int = 400) -> np.ndarray:
    rng = np.random.default_rng(3)
    left = np.linalg.qr(rng.standard_normal((out, len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((into, len(values))))[0]
    return np.asarray((left * values) @ right.T, np.float32)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.97])
def test_rank_and_energy_equal_the_full_svds(decay: float) -> None:
    values = decay ** np.arange(250)
    kept = np.cumsum(values**2) / np.sum(values**2)
    ours = decompose(_spectrum(values))
    best = min(int(np.searchsorted(kept, 0.999)) + 1, 128)
    assert best <= ours.down.shape[0] <= best + 1
    assert ours.energy == pytest.approx(kept[ours.down.shape[0] - 1], abs=1e-5)


def test_the_stated_energy_is_that_of_the_product() -> None:
    matrix = _spectrum(0.995 ** np.arange(300))
    ours = decompose(matrix)
    lost = np.linalg.norm(matrix - ours.up @ ours.down) ** 2 / np.linalg.norm(matrix) ** 2
    assert not ours.sufficient
    assert 1 - ours.energy == pytest.approx(lost, rel=1e-3)


def test_compressing_a_product_equals_decomposing_it() -> None:
    rng = np.random.default_rng(4)
    up = (rng.standard_normal((200, 150)) * 0.8 ** np.arange(150)).astype(np.float32)
    down = rng.standard_normal((150, 220)).astype(np.float32)
    thin, dense = compress(up, down), decompose(up @ down)
    assert thin.energy == pytest.approx(dense.energy, abs=1e-5)
    np.testing.assert_allclose(thin.up @ thin.down, dense.up @ dense.down, atol=1e-3)
