"""The file of figures, written anew after each of them, and the table of bars."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

_LIBRARIES: Final = ("torch", "triton", "diffusers", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach. `figure` is its section and its place within, with dots between."""

    says: str
    figure: str
    bar: str
    is_met: Callable[[Any], bool]


def _at_most(limit: float) -> Callable[[Any], bool]:
    return lambda value: value <= limit


def _at_least(limit: float) -> Callable[[Any], bool]:
    return lambda value: value >= limit


BARS: Final = (
    Bar("1024², 4 steps, go_fast, prompt to WebP", "picture.go_fast.s", "≤ 0.40 s (H100, H200)", _at_most(0.40)),
    Bar("the same in bfloat16", "picture.bf16.s", "≤ 0.60 s (H100, H200)", _at_most(0.60)),
    Bar("a step with one LoRA / with none, 1 MP", "lora.1024x1024_one_over_none", "≤ 1.05", _at_most(1.05)),
    Bar("switch to a LoRA in a slot", "lora.resident_ms", "≤ 1 ms", _at_most(1)),
    Bar("switch to a LoRA in host memory", "lora.from_memory_ms", "≤ 30 ms", _at_most(30)),
    Bar("50 LoRAs in turn", "compiled.fifty_loras.recompilations", "0 recompilations", _at_most(0)),
    Bar("64 requests, 16 clients, 16 LoRAs / diffusers", "serve.ratio", "≥ 2", _at_least(2)),
    Bar("idle share of the card meanwhile", "serve.idle_share", "≤ 0.10", _at_most(0.10)),
    Bar("the same request twice", "parity.exact.same_bytes", "same bytes", bool),
    Bar("the same request twice, go_fast", "parity.go_fast.same_bytes", "same bytes", bool),
    Bar("alone and in a batch", "parity.exact.batch_db", "≥ 45 dB", _at_least(45)),
    Bar("GPU and CPU", "parity.exact.cpu_db", "≥ 35 dB", _at_least(35)),
    *(
        Bar(f"memory capped at {card} GB", f"small_cards.{card}_gb.recovers", "draws, recovers", bool)
        for card in (48, 24, 16, 12)
    ),
)


@dataclass(slots=True)
class Report:
    """All that is known so far: `about` the run, and by section its figures, seconds and error."""

    path: Path | None
    about: Mapping[str, Any]
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self, section: str, seconds: float) -> None:
        """A section starts, with so much time."""
        self.sections[section] = {
            "budget_s": round(seconds, 1),
            "seconds": None,
            "error": "not finished",
            "figures": {},
        }
        self.write()

    def add(self, section: str, figure: tuple[str, Any]) -> None:
        """A figure is known."""
        self.sections[section]["figures"][figure[0]] = figure[1]
        self.write()

    def end(self, section: str, seconds: float, error: str | None) -> None:
        """A section has ended."""
        self.sections[section] |= {"seconds": round(seconds, 1), "error": error}
        self.write()

    def write(self) -> None:
        """Write everything, aside and renamed: whoever stops us at any moment finds a whole file."""
        if self.path is None:
            return
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        partial.replace(self.path)

    def to_json(self) -> dict[str, Any]:
        """Sections by name, beside `about` and `bars`."""
        bars = [{"check": bar.says, "bar": bar.bar, **self.outcome(bar)} for bar in BARS]
        return {"about": dict(self.about), "bars": bars, **self.sections}

    def outcome(self, bar: Bar) -> dict[str, Any]:
        """The bar's figure, and `met`: None where nothing was measured, or where a dry run's figure means nothing."""
        section, *names = bar.figure.split(".")
        value: Any = self.sections.get(section, {}).get("figures", {})
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        known = value is not None and not isinstance(value, Mapping)
        return {"value": value, "met": bar.is_met(value) if known and not self.about.get("dry") else None}

    def table(self) -> str:
        """The bars beside what was measured, then the sections that did not end well."""
        rows = [("check", "measured", "bar", "")]
        for bar in BARS:
            found = self.outcome(bar)
            word = {True: "met", False: "NOT MET", None: "not measured"}[found["met"]]
            rows.append((bar.says, _short(found["value"]), bar.bar, word))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        ends = [
            f"{name}: {section['seconds']} s; {section['error'] or 'ok'}" for name, section in self.sections.items()
        ]
        return "\n".join([*lines, "", *ends])


def _short(value: Any) -> str:
    if value is None or isinstance(value, Mapping):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def about_this_run(*, is_dry: bool) -> dict[str, Any]:
    """Device, driver, libraries and commit: without them no figure says anything."""
    return {
        "dry": is_dry,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("SCHNELL_COMMIT") or _output_of("git", "rev-parse", "HEAD") or "unknown",
        # asked of the driver's own tool: torch would take hold of the card, and sections are forked from this process
        "device": _output_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "python": platform.python_version(),
        "libraries": {name: _version_of(name) for name in _LIBRARIES},
    }


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603 - our own
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version_of(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
