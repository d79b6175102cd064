"""What the proof of origin costs, what the mark survives, and how it does beside `invisible-watermark`."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from schnell.benchmarks.result import BenchmarkResult, median_pair
from schnell.benchmarks.single import make_job
from schnell.bootstrap import build_engine, build_proof, read_settings
from schnell.clock import now
from schnell.engine.engine import generate
from schnell.errors import BenchmarkError
from schnell.models.catalogue import DEFAULT_MODEL
from schnell.provenance.detection import find_mark, phasors_of
from schnell.provenance.mark import FASTEST, TILE, embed, waves
from schnell.provenance.proof import Proof
from schnell.spec import GenerationSpec, Job

Pixels = NDArray[np.uint8]
Change = Callable[[Image.Image], Image.Image]

#: Where photographs lie after `apt-get install mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04`.
_PHOTOGRAPHS: Final = "/usr/share/backgrounds"
_FEWEST_PHOTOGRAPHS: Final = 20
#: Drawn by programs, not taken by cameras.
_NO_PHOTOGRAPHS: Final = ("Painting-Colors", "analogpattern", "/abstract/", "/desktop/")
_SUBJECTS: Final = (
    *(
        "apple",
        "frog",
        "taxi",
        "pizza",
        "rocket",
        "cat face",
        "dog",
        "umbrella",
        "guitar",
        "snowman",
        "cactus",
        "octopus",
    ),
    *("watermelon", "castle", "bus", "crown", "penguin", "rose", "moon", "sun", "camera", "bicycle", "cake", "dolphin"),
    *("ghost", "tree", "key", "clown face"),
)
#: Of each picture; together more than 20,000.
_RANDOM_KEYS: Final = 400
_GROUNDS: Final = ("white", "black", "blue", "gray", "yellow", "teal", "pink")


@dataclass(frozen=True, slots=True)
class Survival:
    """Shares of pictures in which the mark was found, and in which its number was read exactly."""

    found: float
    exact: float


def proof() -> BenchmarkResult:
    """A default request with mark and credentials against one without; in `details` what the mark survives.

    Raises:
        BenchmarkError: there are fewer than 20 photographs to mark.
    """
    photographs = list(_photographs(Path(os.environ.get("SCHNELL_BENCH_PICTURES", _PHOTOGRAPHS))))
    with TemporaryDirectory() as folder:
        given = build_proof(read_settings(data_dir=Path(folder), watermark=True, credentials=True))
    ours, peer, costs = _cost(given)
    sets = {"drawn": list(_drawn()), "photographs": photographs}
    details = {"cost_ms": costs} | {
        f"{kind}_{side}": _survive(pictures, side) for kind, pictures in sets.items() for side in (1024, 512, 256)
    }
    details["false_alarms"] = _false_alarms([picture for pictures in sets.values() for picture in pictures])
    details["invisible_watermark"] = {kind: _peer_survives(pictures) for kind, pictures in sets.items()}
    return BenchmarkResult(
        ours=ours,
        unit="s",
        ours_is="1024x1024 in 4 steps, marked and signed",
        peer=peer,
        peer_is="the same without",
        ratio=ours / peer,
        details=details,
    )


def _cost(given: Proof) -> tuple[float, float, dict[str, float]]:
    engine, plain = build_engine(DEFAULT_MODEL, proof=given), build_engine(DEFAULT_MODEL)
    job = make_job()
    ours, peer = median_pair(
        lambda: generate(engine, job, lambda _: None), lambda: generate(plain, job, lambda _: None)
    )
    image = generate(plain, job, lambda _: None).images[0]
    pixels = np.asarray(Image.open(BytesIO(image.data)).convert("RGB"))
    marked = embed(pixels, 1)
    signer, numbers = given.signer, count()
    assert signer is not None  # noqa: S101 - the settings ask for one
    costs = {
        "sign": _cpu_ms(lambda: signer.sign(image.data, image.media_type, image.receipt, now())),
        # another number each time: a tile that is cached would cost less than a picture does
        "mark": _cpu_ms(lambda: embed(pixels, next(numbers))),
        "verify_marked": _cpu_ms(lambda: find_mark(marked)),
        "verify_clean": _cpu_ms(lambda: find_mark(pixels)),
        "verify_thorough": _cpu_ms(lambda: find_mark(pixels, thorough=True), times=1),
    }
    return ours, peer, costs


def _survive(pictures: list[Image.Image], side: int) -> dict[str, Any]:
    """What is found after each change, the noise that the mark is (PSNR), and what it adds to a WebP file."""
    changes = CHANGES if side == 1024 else {"WebP 80": CHANGES["WebP 80"]}
    hits: dict[str, list[tuple[bool, bool]]] = {name: [] for name in changes}
    decibels, growth = [], []
    for number, picture in enumerate(pictures):
        pixels = np.asarray(picture if side == 1024 else picture.resize((side, side), Image.Resampling.LANCZOS))
        carried = (number + 1) * 0x9E3779B9 % 2**40
        marked = embed(pixels, carried)
        decibels.append(_decibels(pixels, marked))
        growth.append(_webp_bytes(marked) / _webp_bytes(pixels) - 1)
        for name, change in changes.items():
            found = find_mark(np.asarray(change(Image.fromarray(marked))))
            hits[name].append((found.found, found.number == carried))
    survived = {name: _share(results) for name, results in hits.items()}
    return {
        "pictures": len(pictures),
        "psnr_db": round(float(np.mean(decibels)), 2),
        "webp_growth": round(float(np.mean(growth)), 3),
        "found": {name: each.found for name, each in survived.items()},
        "exact": {name: each.exact for name, each in survived.items()},
        "exact_overall": round(float(np.mean([each.exact for each in survived.values()])), 3),
    }


def _false_alarms(pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """Clean pictures and parts of them at all scales and orientations, and random keys at all shifts."""
    parts = [part for picture in pictures for part in (picture, picture.crop((0, 0, 512, 512)), _cropped(0.5)(picture))]
    readings = [find_mark(np.asarray(part)) for part in parts]
    chance = np.random.default_rng(0)
    keys = [_largest_with_random_keys(np.asarray(picture), chance, _RANDOM_KEYS) for picture in pictures]
    return {
        "searched": len(readings),
        "found": sum(each.found for each in readings),
        "largest": round(max(each.certainty for each in readings), 2),
        "random_keys": _RANDOM_KEYS * len(keys),
        "largest_with_random_keys": round(max(keys), 2),
    }


def _largest_with_random_keys(pixels: Pixels, chance: np.random.Generator, keys: int) -> float:
    """The largest correlation of a picture with so many patterns of random phases, in standard deviations."""
    plan = waves()
    fixed, across = slice(plan.fixed), plan.x[: plan.fixed] % TILE
    phasors = phasors_of(pixels)[fixed]
    spectrum = np.zeros((keys, TILE, FASTEST + 1), np.complex64)
    turned = np.exp(2j * np.pi * chance.uniform(size=(keys, plan.fixed)))
    spectrum[:, across, plan.y[fixed]] = phasors * turned
    sums = np.fft.irfft(np.fft.ifft(spectrum, axis=1), TILE, axis=2) * (TILE * TILE / 2)
    return float(sums.max()) / float(np.sqrt(plan.fixed / 2))


def _peer_survives(pictures: list[Image.Image]) -> dict[str, float] | None:
    """dwtDct of `invisible-watermark`, which FLUX.1's own code uses, told the size; None where it is not installed."""
    try:
        from imwatermark import WatermarkDecoder, WatermarkEncoder
    except ImportError:
        return None
    bits = [0, 1, 1, 0, 1, 0, 0, 1] * 6
    encoder, decoder = WatermarkEncoder(), WatermarkDecoder("bits", len(bits))
    encoder.set_watermark("bits", bits)
    hits: dict[str, list[tuple[bool, bool]]] = {name: [] for name in CHANGES}
    for picture in pictures[::3]:
        marked = Image.fromarray(encoder.encode(np.asarray(picture)[..., ::-1].copy(), "dwtDct")[..., ::-1].copy())
        for name, change in CHANGES.items():
            copy = change(marked)
            copy = copy.resize(marked.size) if name.startswith("half size") else copy
            read = decoder.decode(np.asarray(copy)[..., ::-1].copy(), "dwtDct")
            right = sum(int(bool(each)) == bit for each, bit in zip(read, bits, strict=True))
            # 43 of 48 right bits come by chance once in ten million times
            hits[name].append((right >= 43, right == len(bits)))
    return {name: _share(results).found for name, results in hits.items()}


def _drawn() -> Iterator[Image.Image]:
    engine = build_engine(DEFAULT_MODEL, safety=False)
    for seed, subject in enumerate(_SUBJECTS):
        prompt = f"{subject} on a {_GROUNDS[seed % len(_GROUNDS)]} background"
        spec = GenerationSpec(prompt, output_format="png", safety_checker=False)
        image = generate(engine, Job(f"proof-{seed}", "bench", spec, seed), lambda _: None).images[0]
        yield Image.open(BytesIO(image.data)).convert("RGB")


def _photographs(folder: Path) -> Iterator[Image.Image]:
    files = sorted(path for path in folder.rglob("*.jpg") if not any(part in str(path) for part in _NO_PHOTOGRAPHS))
    if len(files) < _FEWEST_PHOTOGRAPHS:
        raise BenchmarkError(
            f"{folder} holds {len(files)} photographs, {_FEWEST_PHOTOGRAPHS} are needed: apt-get install "
            "mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04, or set SCHNELL_BENCH_PICTURES"
        )
    for path in files:
        yield ImageOps.fit(Image.open(path).convert("RGB"), (1024, 1024), Image.Resampling.LANCZOS)


def _saved(file_format: str, quality: int) -> Change:
    def save(picture: Image.Image) -> Image.Image:
        file = BytesIO()
        picture.save(file, file_format, quality=quality)
        return Image.open(BytesIO(file.getvalue())).convert("RGB")

    return save


def _half(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)


def _cropped(share: float) -> Change:
    def crop(picture: Image.Image) -> Image.Image:
        width, height = (round(side * (1 - share)) for side in picture.size)
        # not a multiple of the tile, of blocks or of anything else
        left, top = (picture.width - width) * 3 // 7, (picture.height - height) * 5 // 11
        return picture.crop((left, top, left + width, top + height))

    return crop


CHANGES: Final[Mapping[str, Change]] = {
    "WebP 80": _saved("WEBP", 80),
    "WebP 50": _saved("WEBP", 50),
    "JPEG 50": _saved("JPEG", 50),
    "JPEG 30": _saved("JPEG", 30),
    "half size": _half,
    "half size, JPEG 75": lambda picture: _saved("JPEG", 75)(_half(picture)),
    "10% cropped": _cropped(0.1),
    "50% cropped, JPEG 75": lambda picture: _saved("JPEG", 75)(_cropped(0.5)(picture)),
    "30% brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    "30% darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
    "mirrored": ImageOps.mirror,
    "turned by 90 degrees": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
}


def _share(results: list[tuple[bool, bool]]) -> Survival:
    found, exact = zip(*results, strict=True)
    return Survival(round(sum(found) / len(found), 3), round(sum(exact) / len(exact), 3))


def _decibels(first: Pixels, second: Pixels) -> float:
    error = float(np.mean((first.astype(np.float64) - second) ** 2))
    return 10 * float(np.log10(255**2 / error))


def _webp_bytes(pixels: Pixels) -> int:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=80, method=2)
    return file.tell()


def _cpu_ms(action: Callable[[], object], times: int = 7) -> float:
    """Median milliseconds of this process's processor time: what else runs on the machine counts little."""
    taken = []
    action()
    for _ in range(times):
        start = time.process_time()
        action()
        taken.append((time.process_time() - start) * 1e3)
    return round(median(taken), 2)
