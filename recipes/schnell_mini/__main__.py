"""The recipe's command: `python -m schnell_mini`, with `recipes` on PYTHONPATH. `make mini` calls it.

Libraries that take seconds to import are imported by the command that needs them, so that `--help` is quick.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schnell.cli.output import print_json, progress_bars, say
from schnell.errors import SchnellError

if TYPE_CHECKING:
    from schnell.training.plan import ProgressReport
    from schnell_mini.look_figures import LookFigures
    from schnell_mini.loop import Show
    from schnell_mini.own_looks import OwnFigures

_FAILURE = 1

app = typer.Typer(
    help="Make schnell-mini, the embedded model, and the LoRAs that come with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("model")
def model_command(
    minutes: Annotated[float, typer.Option(min=0.01, help="Training time in all, divided over the stages.")] = 240,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the work folder's last state.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    work: Annotated[Path, typer.Option(help="Where data, states and the result lie.")] = Path("work/mini"),
    start: Annotated[Path | None, typer.Option("--from", help="A model folder whose autoencoder to keep.")] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Print the figures of a model; train nothing.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="With --evaluate: the model folder; without: the embedded model.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --evaluate: ask for this many random icons.")] = None,
    own_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="With --evaluate: train three LoRAs for so long; 3 for the goal.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make schnell-mini from nothing: data, autoencoder, text encoders, flow transformer, model folder."""
    if evaluate:
        evaluate_model(model, work, device, limit, own_minutes, as_json=as_json)
    else:
        make_model(work, minutes, device, start, resume=resume, as_json=as_json)


def make_model(work: Path, minutes: float, device: str, start: Path | None, *, resume: bool, as_json: bool) -> None:
    """Run the whole recipe and print where the model folder is.

    Raises:
        TrainingError: the work folder holds another run and `resume` is off.
        TrainingDataError: the data cannot be fetched or is not what was pinned.
        ModelFolderError: the device is unknown, or not on this machine.
    """
    from schnell.engine.devices import choose_device
    from schnell_mini.data import prepare_data
    from schnell_mini.recipe import Plan, train_mini

    with progress_bars() as show:
        plan = Plan(work, minutes, choose_device(device), show, start=start)
        folder = train_mini(plan, prepare_data, resume=resume)
    if as_json:
        print_json({"model": str(folder)})
    else:
        typer.echo(folder)


def evaluate_model(
    model: Path | None, work: Path, device: str, limit: int | None, own_minutes: float | None, *, as_json: bool
) -> None:
    """Print the figures of a model folder; of the embedded model if none is given.

    Raises:
        TrainingDataError: the icons cannot be fetched.
        ModelFolderError: the device is unknown, or not on this machine.
    """
    from dataclasses import asdict

    from schnell.engine.devices import choose_device
    from schnell.models.catalogue import find_model
    from schnell_mini.data import fetch_icons
    from schnell_mini.evaluation import evaluate

    folder = model or find_model("schnell-mini").path
    with progress_bars() as show:
        icons = fetch_icons(work / "packages")
        figures = evaluate(folder, icons, limit, str(choose_device(device)), lambda title, done: show(title, done, ""))
        looks = [] if model else measure_shipped_looks(work / "packages", limit, show)
        own = [] if own_minutes is None else measure_own(folder, work, own_minutes, show)
    if as_json:
        rows = {"looks": [asdict(each) for each in looks], "own": [asdict(each) for each in own]}
        print_json({"model": str(folder), **figures.to_json(), **rows})
        return
    for name, value, goal in figures.rows():
        typer.echo(f"{name:42} {value:>9}  {goal}")
    for look in looks:
        typer.echo(f"{look.look:14} own style {look.own_style:6.1%}  ≥95%   named {look.named:6.1%}  ≥85%", nl=False)
        typer.echo(f"   edges {look.edge:5.1f}, {look.small_edge:5.1f} at 0.25 MP  ≤3 of 255")
    for each in own:
        typer.echo(
            f"own LoRA {each.look:10} seen {each.seen:6.1%}  ≥90%   named {each.named:6.1%}   {each.seconds:.0f} s"
        )


def measure_shipped_looks(packages: Path, limit: int | None, show: "Show") -> "list[LookFigures]":
    """The figures of the LoRAs that come with the model."""
    from schnell_mini.look_figures import measure_looks
    from schnell_mini.lora_drawing import LoraArtist
    from schnell_mini.lora_icons import read_icons

    drawn = min(100, limit or 100)
    return measure_looks(
        LoraArtist(), read_icons(packages), drawn, 3 * drawn, lambda title, done: show(title, done, "")
    )


def measure_own(folder: Path, work: Path, minutes: float, show: "Show") -> "list[OwnFigures]":
    """How often the looks of LoRAs that are trained here and now are seen."""
    from schnell_mini.lora_drawing import LoraArtist
    from schnell_mini.lora_icons import read_icons
    from schnell_mini.own_looks import measure_own_looks

    icons, artist = read_icons(work / "packages"), LoraArtist(folder)
    return measure_own_looks(artist, icons, work / "own-loras", minutes, lambda title, done: show(title, done, ""))


@app.command("learned")
def learned_command(
    minutes: Annotated[float, typer.Option(min=0.01, help="Training time in all, divided over the stages.")] = 6,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the work folder's last state.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    work: Annotated[Path, typer.Option(help="Where data, states and the result lie.")] = Path("work/learned"),
    start: Annotated[Path | None, typer.Option("--from", help="The model whose text side to keep.")] = None,
    shards: Annotated[Path | None, typer.Option(help="Copy states and result here, in files of 16 MiB.")] = None,
) -> None:
    """Learn every block by flow matching, in several looks; not what ships yet (see the README)."""
    from schnell.engine.devices import choose_device
    from schnell.models.catalogue import find_model
    from schnell_mini.data import fetch_icons
    from schnell_mini.learned.recipe import LearnedPlan, shard_run, train_learned

    folder = start or find_model("schnell-mini").path
    with progress_bars() as show:
        plan = LearnedPlan(work, minutes, choose_device(device), show, folder)
        made = train_learned(plan, fetch_icons(work / "packages"), resume=resume)
    if shards is not None:
        shard_run(work, shards)
    typer.echo(made)


@app.command("styles")
def styles_command(
    minutes: Annotated[float, typer.Option(min=0.001, help="Training time.")] = 30,
    work: Annotated[Path, typer.Option(help="Where data, state and the result lie.")] = Path("work/styles"),
    start: Annotated[Path | None, typer.Option("--from", help="The model; the embedded one if not given.")] = None,
) -> None:
    """Finetune a model's CLIP alone to read past words of style and trigger words; goes on from the state in --work."""
    from schnell.models.catalogue import find_model
    from schnell_mini.data import prepare_unlabelled
    from schnell_mini.loop import StageBudget
    from schnell_mini.style_finetuning import finetune_styles

    folder, data = start or find_model("schnell-mini").path, prepare_unlabelled(work / "packages")
    with progress_bars() as show:
        made = finetune_styles(folder, data, work, StageBudget(60 * minutes), show)
    typer.echo(made)


@app.command("forms")
def forms_command(
    work: Annotated[Path, typer.Option(help="Where the icons lie.")] = Path("work/mini"),
    limit: Annotated[int, typer.Option(min=1, help="Ask for this many random icons.")] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print how many icons the embedded model still names when its weights are quantized."""
    from dataclasses import asdict

    from schnell.models.catalogue import find_model
    from schnell_mini.data import fetch_icons
    from schnell_mini.form_evaluation import evaluate_forms

    with progress_bars() as show:
        icons = fetch_icons(work / "packages")
        figures = evaluate_forms(find_model("schnell-mini"), icons, limit, lambda title, done: show(title, done, ""))
    if as_json:
        print_json([asdict(each) for each in figures])
        return
    for each in figures:
        typer.echo(f"{each.form:38} named {each.named:6.1%}  {each.median_db:5.1f} dB, lowest {each.lowest_db:4.1f}")


@app.command("loras")
def loras_command(
    minutes: Annotated[float, typer.Option(min=0.001, help="How long each LoRA is fitted, without painting.")] = 3.0,
    steps: Annotated[int | None, typer.Option(min=2, help="Fit at most so many steps.")] = None,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="The share of the pictures to paint.")] = 1.0,
    again: Annotated[bool, typer.Option("--again", help="Start from the LoRAs that are in the folder.")] = False,
    model: Annotated[str, typer.Option(help="A model's name or folder.")] = "schnell-mini",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    only: Annotated[list[str] | None, typer.Option(help="Make this one alone; may be given several times.")] = None,
    work: Annotated[Path, typer.Option(help="Where the icons are fetched to.")] = Path("work/loras"),
    out: Annotated[
        Path | None, typer.Option(help="Where to write them; into the package, beside the model, if not given.")
    ] = None,
) -> None:
    """Make the LoRAs that come with schnell-mini: paint icons in five looks, fit one LoRA to each."""
    from schnell.engine.devices import choose_device
    from schnell.models.catalogue import find_model
    from schnell.models.folder import embedded_home
    from schnell.training.low_rank import place_model
    from schnell_mini.data import fetch_icons
    from schnell_mini.train_loras import BundlePlan, fit_bundled, pick_bundled

    chosen = pick_bundled(only or [])
    plan = BundlePlan(out or embedded_home() / "loras", minutes, steps, share, again)
    base = place_model(find_model(model), choose_device(device))
    icons = fetch_icons(work / "packages")
    for lora in chosen:
        with _progress() as report:
            fitted = fit_bundled(lora, base, icons, plan, report)
        say(f"{lora.name}: {fitted.steps} steps, loss {fitted.loss:.4f}")


@app.command("drawing")
def drawing_command(
    minutes: Annotated[float, typer.Option(min=0.001, help="How long the blocks learn, without encoding.")] = 60.0,
    updates: Annotated[int | None, typer.Option(min=1, help="At most so many updates.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    work: Annotated[Path, typer.Option(help="Where icons, latents and state lie.")] = Path("work/drawing"),
    out: Annotated[
        Path | None, typer.Option(help="A folder for the weights; the embedded model's if not given.")
    ] = None,
) -> None:
    """Finetune the embedded model's drawing blocks on prompts as CLIP reads them; LoRAs have to be made again."""
    from schnell.engine.devices import choose_device
    from schnell.models.catalogue import find_model
    from schnell_mini.data import fetch_icons
    from schnell_mini.recipe import STAGE_SHARES, Plan, refine_drawing

    folder = find_model("schnell-mini").path
    target = out or folder / "transformer"
    with progress_bars() as show:
        plan = Plan(work, minutes / STAGE_SHARES["drawing"], choose_device(device), show, updates=updates)
        refine_drawing(plan, folder, fetch_icons(work / "packages"), target)
    typer.echo(target)


@app.command("decoder")
def decoder_command(
    minutes: Annotated[float, typer.Option(min=0.001, help="How long the decoder learns, without drawing.")] = 60.0,
    updates: Annotated[int | None, typer.Option(min=1, help="At most so many updates.")] = None,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="The share of the pictures to draw.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    work: Annotated[Path, typer.Option(help="Where icons, drawn pictures and state lie.")] = Path("work/decoder"),
    out: Annotated[
        Path | None, typer.Option(help="A folder for the weights; the embedded model's if not given.")
    ] = None,
) -> None:
    """Finetune the embedded model's decoder on what it draws with its LoRAs and without."""
    from diffusers import AutoencoderKL

    from schnell.engine.devices import choose_device
    from schnell.models.catalogue import find_model
    from schnell.models.folder import embedded_home
    from schnell.training.low_rank import place_model
    from schnell_mini.data import fetch_icons
    from schnell_mini.decoder_finetuning import finetune_decoder, write_weights
    from schnell_mini.drawn_pictures import Studio
    from schnell_mini.loop import StageBudget

    folder, chosen = find_model("schnell-mini"), choose_device(device)
    vae = AutoencoderKL.from_pretrained(folder.path / "vae").float().to(chosen).eval()
    studio = Studio(place_model(folder, chosen), vae, fetch_icons(work / "packages"), embedded_home() / "loras")
    with progress_bars() as show:
        finetuned = finetune_decoder(studio, work, StageBudget(60 * minutes, updates), share, show)
    target = out or folder.path / "vae"
    write_weights(finetuned, target)
    typer.echo(target)


@app.command("sheet")
def sheet_command(
    out: Annotated[Path, typer.Argument(help="The picture to write.")] = Path("docs/pictures/schnell-mini-loras.webp"),
    loras: Annotated[Path | None, typer.Option(help="The folder of the LoRAs; the shipped ones if not given.")] = None,
) -> None:
    """Draw the contact sheet: fixed prompts without a LoRA and with each of the bundled ones, always the same seeds."""
    from schnell_mini.contact_sheet import draw_contact_sheet
    from schnell_mini.lora_drawing import LoraArtist

    with progress_bars() as show:
        data = draw_contact_sheet(LoraArtist(loras=loras), lambda title, done: show(title, done, ""))
    out.write_bytes(data)
    typer.echo(out)


@app.command("safety")
def safety_command(
    work: Annotated[Path, typer.Option(help="Where the fetched packages lie.")] = Path("work/mini"),
) -> None:
    """How often the safety check is wrong about the pictures that the model learns from, all of them harmless."""
    from schnell_mini.safety import count_false_alarms

    print_json(count_false_alarms(work / "packages"))


@contextmanager
def _progress() -> Iterator["ProgressReport"]:
    with progress_bars() as show:
        yield lambda progress: show(progress.stage, progress.done, progress.message)


def main() -> None:
    """Run the command; a failure that we understand is one line on stderr, not a stack trace."""
    try:
        app()
    except SchnellError as error:
        say(f"schnell_mini: {error.message}")
        sys.exit(_FAILURE)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
