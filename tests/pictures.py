"""How alike two pictures are."""

import numpy as np
from PIL import Image


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    error = float((difference**2).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
