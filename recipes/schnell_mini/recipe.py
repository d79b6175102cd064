"""The whole recipe: data, autoencoder, text encoders, the transformer, export. Each stage goes on where it stopped."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from schnell.errors import TrainingError
from schnell_mini.anchors import prepare_t5
from schnell_mini.appearance_codes import measure_all_maps, measure_codes, measure_palette
from schnell_mini.autoencoder import VaeLearner
from schnell_mini.caption_dataset import Bank, Lore, fill_bank, load_bank, make_texts, save_bank
from schnell_mini.code_conditioning import Known, Teller
from schnell_mini.code_training import CodeLearner
from schnell_mini.data import Data
from schnell_mini.decoder_finetuning import DecoderLearner
from schnell_mini.drawing_blocks import BlockLearner
from schnell_mini.export import export_model
from schnell_mini.key_value_blocks import memory_blocks, plan_memory, write_memory
from schnell_mini.latents import VIEWS, Encoded, View, encode_view, load_encoded, save_encoded
from schnell_mini.loop import Budget, Learner, Show, run_learner
from schnell_mini.networks import Shape, build_clip, build_t5, build_transformer, build_vae
from schnell_mini.picture_dataset import open_scenes
from schnell_mini.pictures import Icons
from schnell_mini.position_weights import write_places
from schnell_mini.sampling import Painter
from schnell_mini.text_classifier import ClipReader, TextLearner
from schnell_mini.text_models import TextModels
from schnell_mini.tokens import ANCHORS, token_ids, train_vocabulary, wrap

SHARES = {"vae": 0.25, "clip": 0.15, "codes": 0.2, "blocks": 0.25, "decoder": 0.15}
VOCABULARY_TEXTS = 60_000
STATISTICS = 256
HEARD_TEXTS = 512


@dataclass(frozen=True)
class Plan:
    """Where to work, for how long, how large, on what, and which folder to start from.

    `captions` are kept in the bank that the text encoder learns from; `colourings` is how often each view is encoded.
    """

    work: Path
    minutes: float
    device: torch.device
    show: Show
    shape: Shape = field(default_factory=Shape)
    start: Path | None = None
    updates: int | None = None
    captions: int = 1_000_000
    colourings: int = 2

    def budget(self, stage: str) -> Budget:
        """A stage's part of the minutes."""
        return Budget(SHARES[stage] * self.minutes * 60, self.updates)

    def state(self, stage: str) -> Path:
        """Weights, optimizer and count of updates."""
        return self.work / "state" / f"{stage}.pt"

    def run(self, stage: str, learner: Learner) -> None:
        """Run a stage to its end, resuming it."""
        run_learner(learner, self.budget(stage), self.state(stage), self.show)


def train_mini(plan: Plan, prepare: Callable[[Path, Show], Data], *, resume: bool) -> Path:
    """Run every stage that is not finished and return the exported folder.

    Raises:
        TrainingError: the work folder holds another run and `resume` is off.
        TrainingDataError: the data cannot be fetched or is not what was pinned.
    """
    states = plan.work / "state"
    if states.exists() and not resume:
        raise TrainingError(f"{plan.work} holds an earlier run: add --resume to go on, or choose another --work")
    states.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if plan.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # what is not in bfloat16 there: TF32 keeps places apart as well
    data = prepare(plan.work, plan.show)
    vae = teach_vae(plan, data.icons)
    views = encode_views(plan, vae, data.icons)
    known = Known(measure_codes(views["white"][0]), measure_palette(views["white"][0], views["colour"][0]))
    torch.manual_seed(0)
    transformer = build_transformer(plan.shape).to(plan.device)
    painter = Painter(teach_text(plan, data, transformer, known), transformer, vae)
    learn_to_draw(plan, painter, data, Pictures(views, known))
    folder = plan.work / "schnell-mini"
    export_model(painter, folder)
    plan.show("export", 1.0, str(folder))
    return folder


def teach_vae(plan: Plan, icons: Icons) -> AutoencoderKL:
    """The autoencoder, from nothing or taken from the starting folder, with its latents' mean and spread."""
    if plan.start is not None:
        return AutoencoderKL.from_pretrained(plan.start / "vae").float().to(plan.device).eval()
    learner = VaeLearner(build_vae(plan.shape), icons, plan.device)
    plan.run("vae", learner)
    vae = learner.vae.eval()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    count = min(STATISTICS, len(icons))
    sample = encode_view(
        vae, replace(icons, pictures=icons.pictures[:count], entries=icons.entries[:count]), VIEWS[0], 0
    )
    values = sample.latents.float()
    vae.register_to_config(shift_factor=float(values.mean()), scaling_factor=float(1 / values.std()))
    return vae


def encode_views(plan: Plan, vae: AutoencoderKL, icons: Icons) -> dict[str, tuple[Encoded, ...]]:
    """Latents of every view, in several colourings unless it is all white; kept in the work folder."""
    folder = plan.work / "latents"
    folder.mkdir(exist_ok=True)
    views = {}
    for number, view in enumerate(VIEWS):
        plan.show("latents", number / len(VIEWS), view.name)
        rounds = 1 if view.white == 1 else plan.colourings
        paths = [folder / f"{view.name}-{turn}.pt" for turn in range(rounds)]
        views[view.name] = tuple(
            encode_once(vae, icons, view, number + turn * len(VIEWS), path) for turn, path in enumerate(paths)
        )
    return views


def encode_once(vae: AutoencoderKL, icons: Icons, view: View, seed: int, path: Path) -> Encoded:
    """A view's latents, from its file where there is one."""
    if not path.exists():
        save_encoded(encode_view(vae, icons, view, seed), path)
    return load_encoded(path)


def teach_text(plan: Plan, data: Data, transformer: FluxTransformer2DModel, known: Known) -> TextModels:
    """CLIP alone, then together with the transformer's text embedder."""
    vocabulary = make_vocabulary(plan, data.lore)
    tokenizers = (wrap(vocabulary), wrap(vocabulary, ANCHORS))
    size = len(tokenizers[0])
    bank = make_bank(plan, data.lore, vocabulary).to(plan.device)
    reader = ClipReader(build_clip(plan.shape, size), plan.shape.width, len(data.icons))
    plan.run("clip", TextLearner(reader, bank, plan.device))
    learner = CodeLearner(transformer, reader, bank, known, plan.device)
    plan.run("codes", learner)
    learner.finish()
    torch.manual_seed(0)
    t5 = build_t5(plan.shape, size)
    prepare_t5(t5)
    return TextModels(reader.encoder.eval(), t5.to(plan.device).eval(), tokenizers)


def make_vocabulary(plan: Plan, lore: Lore) -> Tokenizer:
    """The word pieces of many captions, kept in the work folder."""
    path = plan.work / "vocabulary.json"
    if not path.exists():
        train_vocabulary(make_texts(lore, VOCABULARY_TEXTS), plan.shape.vocabulary).save(str(path))
    return Tokenizer.from_file(str(path))


def make_bank(plan: Plan, lore: Lore, vocabulary: Tokenizer) -> Bank:
    """The captions to learn from, kept in the work folder."""
    path = plan.work / "captions.pt"
    if not path.exists():
        plan.show("captions", 0.0, f"{plan.captions} captions")
        save_bank(fill_bank(lore, vocabulary, plan.captions), path)
        plan.show("captions", 1.0, f"{plan.captions} captions")
    return load_bank(path)


@dataclass(frozen=True)
class Pictures:
    """Encoded views, and the codes that stand for icons and backgrounds."""

    views: dict[str, tuple[Encoded, ...]]
    known: Known


def learn_to_draw(plan: Plan, painter: Painter, data: Data, pictures: Pictures) -> None:
    """Places and memory are written, drawing blocks and decoder learn."""
    transformer, scenes = painter.transformer, open_scenes(pictures.views, plan.device)
    write_looks(transformer.to("cpu"), data.icons, scenes.directions.cpu(), pictures)
    transformer.to(plan.device)
    heard = hear_texts(painter.text.t5, painter.text.tokenizers[1], data.lore)
    teller = Teller(pictures.known.to(plan.device), heard)
    blocks = BlockLearner(transformer, teller, scenes)
    plan.run("blocks", blocks)
    blocks.finish()
    decoder = DecoderLearner(painter.vae, transformer, teller, scenes, data.icons)
    plan.run("decoder", decoder)
    decoder.finish()


def write_looks(
    transformer: FluxTransformer2DModel, icons: Icons, directions: torch.Tensor, pictures: Pictures
) -> None:
    """Write the places, the linear memory of every icon, the time's way in, and the last layer."""
    write_places(transformer, directions)
    views = {name: same[0] for name, same in pictures.views.items()}
    maps = measure_all_maps(views, icons, pictures.known.looks, pictures.known.palette)
    blocks = memory_blocks(transformer)
    write_memory(transformer, plan_memory(maps, len(blocks), blocks[0].mlp_hidden_dim), pictures.known.palette)


@torch.no_grad()
def hear_texts(t5: T5EncoderModel, tokenizer: PreTrainedTokenizerFast, lore: Lore) -> torch.Tensor:
    """What T5 says about some captions `[M, 32, D]`."""
    ids = token_ids(tokenizer, make_texts(lore, HEARD_TEXTS, seed=1))
    heard: torch.Tensor = t5(input_ids=ids.to(t5.device))[0]
    return heard


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        TrainingError: the device is not known or not here.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise TrainingError(f"device: {name!r} is not auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device: there is no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
