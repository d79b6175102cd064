"""What a picture was made from: enough to make it again, and nothing that changes from run to run.

A receipt is a JSON object inside the picture's file (`provenance.image_file` writes and reads it there).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from schnell.errors import ImageMetadataError, SchnellError
from schnell.spec import GenerationSpec, LoraRef, OutputFormat, Size

#: Of the receipt's fields: a reader refuses one that it does not know.
RECEIPT_VERSION: Final = 1


@cache
def engine_version() -> str:
    """The version of the installed package."""
    try:
        return version("schnell")
    except PackageNotFoundError:  # run from PYTHONPATH=src, as on a bare GPU machine
        return "0.0.0+source"


@dataclass(frozen=True, slots=True)
class AdapterReceipt:
    """A LoRA that took part: its name as asked for, the SHA-256 of its file, and its scale."""

    name: str
    sha256: str
    scale: float


@dataclass(frozen=True, slots=True)
class Receipt:
    """Everything that decided one picture's bytes, on a given processor.

    `engine` is schnell's version, `model_sha256` the hash of the transformer's weights, `width` and `height` are
    pixels. `mark` names the invisible mark's scheme (`provenance.mark.SCHEME`); None: the picture carries none.
    """

    engine: str
    model: str
    model_sha256: str
    precision: str
    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    go_fast: bool
    output_format: OutputFormat
    output_quality: int
    loras: tuple[AdapterReceipt, ...] = ()
    mark: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The receipt as a JSON object. `mark` is absent without one, as in receipts from before there were marks."""
        fields: dict[str, Any] = {
            "schnell": RECEIPT_VERSION,
            "engine": self.engine,
            "model": {"name": self.model, "sha256": self.model_sha256},
            "precision": self.precision,
            "prompt": self.prompt,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.steps,
            "go_fast": self.go_fast,
            "output_format": self.output_format,
            "output_quality": self.output_quality,
            "loras": [{"name": used.name, "sha256": used.sha256, "scale": used.scale} for used in self.loras],
        }
        return fields if self.mark is None else fields | {"mark": self.mark}

    def to_parameters(self) -> str:
        """The same as Automatic1111's `parameters` text, which most galleries read."""
        # the form is Automatic1111's: prompt with its LoRA tags on one line, then `Name: value` pairs
        tags = "".join(f" <lora:{used.name}:{used.scale:g}>" for used in self.loras)
        fields = [
            f"Steps: {self.steps}",
            "Sampler: Euler",
            "CFG scale: 1",
            f"Seed: {self.seed}",
            f"Size: {self.width}x{self.height}",
            f"Model hash: {self.model_sha256[:10]}",
            f"Model: {self.model}",
            f"Version: schnell {self.engine}",
        ]
        return f"{self.prompt}{tags}\n{', '.join(fields)}"


def spec_from_receipt(receipt: Mapping[str, Any]) -> GenerationSpec:
    """The request that makes a receipt's picture again, with one output.

    Raises:
        ImageMetadataError: written by another version, or its values are not those of a valid request.
    """
    if receipt.get("schnell") != RECEIPT_VERSION:
        raise ImageMetadataError(
            f"this receipt has version {receipt.get('schnell')!r}, this schnell reads {RECEIPT_VERSION}"
        )
    try:
        return GenerationSpec(
            prompt=str(receipt["prompt"]),
            size=Size(int(receipt["width"]), int(receipt["height"])),
            steps=int(receipt["num_inference_steps"]),
            seed=int(receipt["seed"]),
            output_format=receipt["output_format"],
            output_quality=int(receipt["output_quality"]),
            go_fast=bool(receipt["go_fast"]),
            loras=tuple(LoraRef(str(used["name"]), float(used["scale"])) for used in receipt["loras"]),
            watermark=receipt.get("mark") is not None,
        )
    # a receipt comes from a file that anybody may have written: `GenerationSpec` checks it as it does a request
    except (KeyError, TypeError, ValueError, SchnellError) as error:
        raise ImageMetadataError(f"this receipt is damaged: {error}") from error


def receipt_text(receipt: Mapping[str, Any]) -> str:
    """Compact JSON in ASCII, the form that is written into picture files."""
    return json.dumps(receipt, separators=(",", ":"), ensure_ascii=True)


def mark_number(receipt: Mapping[str, Any]) -> int:
    """The 40 bits that a picture's mark carries: the first of SHA-256 over its receipt, as it stands in the file.

    Two pictures may share them: among a million, that happens about once.
    """
    return int.from_bytes(sha256(receipt_text(receipt).encode("ascii")).digest()[:5], "big")
