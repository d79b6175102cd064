"""`schnell generate`: one request drawn in this process, without a server."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from schnell.cli.output import print_json, say
from schnell.errors import FieldProblem, InvalidFieldError, MissingFieldError
from schnell.models.folder import ModelFolder
from schnell.spec import (
    CUSTOM_RATIO,
    AdapterUse,
    GeneratedImage,
    GenerationSpec,
    Job,
    JobOutcome,
    LoraRef,
    OutputFormat,
    ProgressListener,
    Size,
    combine_loras,
    output_format_named,
    random_seed,
    resolve_size,
)

Side = Annotated[
    int | None,
    typer.Option(help="256-1440, a multiple of 32. Both make the ratio custom, with which each is 1024 if absent."),
]


def generate_command(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    output: Annotated[Path, typer.Option(help="Where to write; the ending decides the format.")] = Path("picture.webp"),
    seed: Annotated[int | None, typer.Option(help="0-4294967295; random if not given.")] = None,
    aspect_ratio: Annotated[str, typer.Option(help="1:1, 16:9, 9:16, 3:2, 2:3, 4:5, 5:4 or custom.")] = "1:1",
    width: Side = None,
    height: Side = None,
    megapixels: Annotated[str, typer.Option(help="1 or 0.25.")] = "1",
    steps: Annotated[int, typer.Option(help="Denoising steps, 1-4.")] = 4,
    num_outputs: Annotated[int, typer.Option(help="Pictures to draw, 1-4; each has the next seed.")] = 1,
    lora: Annotated[list[str] | None, typer.Option(help="NAME-OR-FILE[:SCALE]; may be given twice.")] = None,
    quality: Annotated[int, typer.Option(help="Compression quality, 0-100.")] = 80,
    go_fast: Annotated[bool, typer.Option(help="Faster arithmetic where the processor has it.")] = True,
    no_safety: Annotated[bool, typer.Option("--no-safety", help="Skip the safety check.")] = False,
    no_proof: Annotated[
        bool, typer.Option("--no-proof", help="Neither mark the picture invisibly nor sign it.")
    ] = False,
    model: Annotated[str, typer.Option(help="A model's name or folder.")] = "schnell-mini",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, xpu or mps.")] = "auto",
    from_file: Annotated[Path | None, typer.Option("--from", help="Repeat the picture in this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt, files and timings as JSON.")] = False,
) -> None:
    """Draw a picture and write it to a file."""
    # `none` for a path without an ending, so that the error names something
    file_format = output_format_named(output.suffix.removeprefix(".") or "none")
    if from_file is not None:
        spec = _spec_of_picture(from_file, file_format)
    else:
        spec = GenerationSpec(
            prompt=prompt or "",
            size=_size(aspect_ratio, megapixels, width, height),
            steps=steps,
            seed=seed,
            num_outputs=num_outputs,
            output_format=file_format,
            output_quality=quality,
            go_fast=go_fast,
            loras=combine_loras(_parse_lora(text) for text in lora or []),
        )
    spec = replace(spec, safety_checker=not no_safety)
    outcome = _draw(spec, model, device, proof=not no_proof)
    files = _write_files(outcome, output)
    _report(outcome, files, as_json=as_json)


def _size(aspect_ratio: str, megapixels: str, width: int | None, height: int | None) -> Size:
    """The size as the native API has it: both sides together mean `custom`, one of them needs it said."""
    if (width is None) != (height is None) and aspect_ratio != CUSTOM_RATIO:
        missing, given = ("height", "width") if height is None else ("width", "height")
        raise MissingFieldError(FieldProblem(missing, f"is required with {given}, or --aspect-ratio {CUSTOM_RATIO}"))
    return resolve_size(aspect_ratio if width is None else CUSTOM_RATIO, megapixels, width, height)


def _spec_of_picture(path: Path, file_format: OutputFormat) -> GenerationSpec:
    from schnell.provenance.image_file import read_receipt
    from schnell.provenance.receipt import spec_from_receipt

    if not path.is_file():
        raise InvalidFieldError(FieldProblem("from", f"there is no file {path}"))
    return replace(spec_from_receipt(read_receipt(path)), output_format=file_format)


def _parse_lora(text: str) -> LoraRef:
    reference, colon, scale = text.rpartition(":")
    if not colon or not reference:
        return LoraRef(text)
    try:
        return LoraRef(reference, float(scale))
    except ValueError:
        return LoraRef(text)  # the colon of a URL or of a Windows drive, not of a scale


def _draw(spec: GenerationSpec, model: str, device: str, *, proof: bool) -> JobOutcome:
    from schnell.bootstrap import build_engine, build_proof, read_settings, without_collecting

    with without_collecting():
        given = build_proof(read_settings()) if proof else None
        engine = build_engine(model, device=device, safety=spec.safety_checker, proof=given)
        # after `build_engine`, which has something to do while torch is imported
        from schnell.engine.engine import generate
    adapters = tuple(resolve_lora(lora, engine.folder) for lora in spec.loras)
    seed = random_seed() if spec.seed is None else spec.seed
    job = Job(id="cli", team_id="cli", spec=spec, seed=seed, adapters=adapters)
    with _step_bar(spec.steps) as listen:
        return generate(engine, job, listen)


def resolve_lora(lora: LoraRef, model: ModelFolder) -> AdapterUse:
    """The converted file of a bundled LoRA's name or of a path. Raises InvalidFieldError, AdapterError."""
    from schnell.adapters import convert_adapter, read_model_shape
    from schnell.models.folder import cache_home

    file = _lora_file(lora.reference, model)
    converted = convert_adapter(file, cache_home() / "adapters", shape=read_model_shape(model.path))
    return AdapterUse(name=lora.reference, sha256=converted.sha256, path=converted.path, scale=lora.scale)


def _lora_file(reference: str, model: ModelFolder) -> Path:
    from schnell.loras.bundled import read_bundled
    from schnell.models.folder import embedded_home

    bundled = read_bundled(embedded_home() / "loras") if model.path.is_relative_to(embedded_home()) else ()
    path = next((each.path for each in bundled if each.answers_to(reference)), Path(reference))
    if not path.is_file():
        names = ", ".join(each.name for each in bundled) or "there are none for this model"
        problem = f"{reference} is neither a file nor a bundled LoRA ({names}); others: schnell loras add, then serve"
        raise InvalidFieldError(FieldProblem("lora", problem))
    return path


@contextmanager
def _step_bar(steps: int) -> Iterator[ProgressListener]:
    """A bar on stderr that counts denoising steps, where somebody sees it; gone once the block ends."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=steps)
        yield lambda progress: bar.update(task, description=progress.stage, completed=progress.step)


def _write_files(outcome: JobOutcome, output: Path) -> list[Path]:
    if not outcome.images:
        raise InvalidFieldError(
            FieldProblem("prompt", "every picture was withheld by the safety check (--no-safety skips it)")
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    return [_write_file(image, output, numbered=len(outcome.images) > 1) for image in outcome.images]


def _write_file(image: GeneratedImage, output: Path, *, numbered: bool) -> Path:
    path = output.with_stem(f"{output.stem}-{image.index}") if numbered else output
    path.write_bytes(image.data)
    return path


def _report(outcome: JobOutcome, files: list[Path], *, as_json: bool) -> None:
    for warning in outcome.warnings:
        say(f"warning: {warning}")
    if outcome.flagged:
        say(f"withheld by the safety check: output {', '.join(map(str, outcome.flagged))}")
    if not as_json:
        for image, path in zip(outcome.images, files, strict=True):
            say(f"{path}  {image.width}x{image.height}  seed {image.seed}")
        return
    print_json(
        {
            "images": [
                {
                    "file": str(path),
                    "receipt": dict(image.receipt),
                    "proof": {"mark": image.mark, "credentials": image.manifest},
                }
                for image, path in zip(outcome.images, files, strict=True)
            ],
            "flagged": list(outcome.flagged),
            "warnings": list(outcome.warnings),
            "timings": {stage: round(seconds, 4) for stage, seconds in outcome.timings.items()},
        }
    )
