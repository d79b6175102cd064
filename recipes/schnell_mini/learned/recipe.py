"""The conventional recipe from end to end, on a GPU in minutes or a CPU over hours: each stage goes on where it was.

It keeps the text side of the model that it starts from, and learns the autoencoder and every block of the transformer.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from schnell.errors import TrainingError
from schnell_mini.export import export_model
from schnell_mini.learned.autoencoder import (
    InnerLearner,
    OuterFeatures,
    WholeLearner,
    deepen,
    find_codes,
    outer_features,
)
from schnell_mini.learned.caption_dataset import CANVASES, Canvas, build_captioned, paint, plan_pictures
from schnell_mini.learned.few_step import FewStepLearner
from schnell_mini.learned.transformer import CODE_OFFSET, Captioned, FlowLearner, FlowShape, build_flow
from schnell_mini.loop import Learner, Show, StageBudget, run_learner, write_state
from schnell_mini.pictures import Icons
from schnell_mini.sampling import MiniPipeline, load_pipeline
from schnell_mini.subjects import write_subjects

#: Each stage's share of the minutes; painting and encoding come on top. Convolutions at full size are dear on a CPU.
SHARES = {
    "cuda": {"inner": 0.08, "whole": 0.27, "flow": 0.5, "few": 0.15},
    "cpu": {"inner": 0.1, "whole": 0.05, "flow": 0.67, "few": 0.18},
}
SHARD_BYTES = 16 << 20


@dataclass(frozen=True)
class LearnedPlan:
    """Where to work, for how long, on what, and from which model; the rest is for small tests.

    `updates` ends each stage after so many; `taught` is how many pictures the autoencoder learns from.
    """

    work: Path
    minutes: float
    device: torch.device
    show: Show
    start: Path
    shape: FlowShape = field(default_factory=FlowShape)
    canvases: Sequence[Canvas] = CANVASES
    updates: int | None = None
    taught: int = 4000

    def run(self, stage: str, learner: Learner) -> None:
        """Run a stage to its end, resuming it."""
        budget = StageBudget(60 * self.minutes * SHARES[self.device.type][stage], self.updates)
        run_learner(learner, budget, self.work / "state" / f"{stage}.pt", self.show)


def train_learned(plan: LearnedPlan, icons: Icons, *, resume: bool) -> Path:
    """Run every stage that is not finished; the exported folder.

    Raises:
        TrainingError: the work folder holds an earlier run and `resume` is off.
    """
    states = plan.work / "state"
    if states.exists() and not resume:
        raise TrainingError(f"{plan.work} holds an earlier run: add --resume to go on, or choose another --work")
    states.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    start = load_pipeline(plan.start, str(plan.device))
    vae = train_autoencoder(plan, start.vae, icons)
    canvases = encode_canvases(plan, icons, MiniPipeline(start.text, start.transformer, vae))
    transformer = build_flow(plan.shape, start.transformer.time_text_embed.text_embedder).to(plan.device)
    learner = FlowLearner(transformer, canvases, plan.device)
    plan.run("flow", learner)
    learner.average.copy_to(transformer)
    few = FewStepLearner(transformer, deepcopy(transformer), canvases, plan.device)
    plan.run("few", few)
    few.average.copy_to(transformer)
    return export(plan, MiniPipeline(start.text, transformer.eval(), vae), icons)


def train_autoencoder(plan: LearnedPlan, shallow: AutoencoderKL, icons: Icons) -> AutoencoderKL:
    """The f16 autoencoder, its latents brought to zero mean and unit variance."""
    torch.manual_seed(0)
    pictures = paint_square(plan, icons)
    deep = deepen(shallow).to(plan.device)
    if not (plan.work / "state/whole.pt").exists():
        inner = InnerLearner(deep, read_outer(plan, shallow, pictures), plan.device)
        plan.run("inner", inner)
    whole = WholeLearner(deep, pictures, plan.device)
    plan.run("whole", whole)
    vae = whole.vae.eval()
    with torch.no_grad():
        sample = pictures[:256].to(plan.device).float() / 127.5 - 1
        means = torch.cat([vae.encode(part).latent_dist.mean.float() for part in torch.split(sample, 16)])
    vae.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))
    return vae


def paint_square(plan: LearnedPlan, icons: Icons) -> Tensor:
    """Square pictures in all looks for the autoencoder, bytes `[N, 3, H, W]`."""
    rng, canvas = Random(1), plan.canvases[0]
    planned = plan_pictures(rng, len(icons), canvas)
    planned = rng.sample(planned, min(plan.taught, len(planned)))
    pictures = torch.empty(len(planned), 3, canvas.height, canvas.width, dtype=torch.uint8)
    for numbers, pixels in paint(icons, planned, canvas, plan.device):
        pictures[numbers] = (255 * pixels).round().to(torch.uint8).cpu()
        plan.show("pictures", numbers[-1] / len(planned), f"{len(planned)} pictures")
    return pictures


def read_outer(plan: LearnedPlan, shallow: AutoencoderKL, pictures: Tensor) -> OuterFeatures:
    """The shallow autoencoder's features for the pictures, and the codes that the new levels learn."""
    parts = [outer_features(shallow, part.to(plan.device).float() / 127.5 - 1) for part in torch.split(pictures, 16)]
    read, wanted, latents = (torch.cat([part.half().cpu() for part in kind]) for kind in zip(*parts, strict=True))
    return OuterFeatures(read, wanted, find_codes(latents.float()).half())


def encode_canvases(plan: LearnedPlan, icons: Icons, pipeline: MiniPipeline) -> list[Captioned]:
    """Every canvas's latents and captions; kept in the work folder."""
    folder = plan.work / "canvases"
    folder.mkdir(exist_ok=True)
    found = []
    for number, canvas in enumerate(plan.canvases):
        path = folder / f"{canvas.width}x{canvas.height}.pt"
        plan.show("latents", number / len(plan.canvases), path.stem)
        if not path.exists():
            made = build_captioned(icons, canvas, pipeline, Random(number))
            write_state({each.name: getattr(made, each.name) for each in fields(made)}, path)
        found.append(Captioned(**torch.load(path, weights_only=True)))
    return found


def export(plan: LearnedPlan, pipeline: MiniPipeline, icons: Icons) -> Path:
    """The model's folder, with the list of what it knows."""
    folder = plan.work / "schnell-mini"
    export_model(pipeline, folder, computed=False)
    names = [label.name for label in icons.labels]
    write_subjects(load_pipeline(folder), names, folder, centre=CODE_OFFSET)
    return folder


def split_file(path: Path, folder: Path, size: int = SHARD_BYTES) -> list[Path]:
    """Copy a file into shards of at most `size` bytes, for machines that hand back no larger files."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    with path.open("rb") as file:
        while part := file.read(size):
            shards.append(folder / f"{path.name}.{len(shards):03d}")
            shards[-1].write_bytes(part)
    return shards


def join_shards(shards: Sequence[Path], path: Path) -> None:
    """Put together what `split_file` made; they are joined in the order of their names."""
    with path.open("wb") as file:
        for shard in sorted(shards):
            file.write(shard.read_bytes())


def shard_run(work: Path, out: Path) -> None:
    """Copy the states and the exported model of a run into `out`, in shards; the canvases can be made again."""
    for path in sorted((*work.glob("state/*.pt"), *work.glob("schnell-mini/**/*"))):
        if path.is_file():
            split_file(path, out / path.relative_to(work).parent)
