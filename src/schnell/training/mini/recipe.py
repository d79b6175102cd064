"""The whole recipe: data, autoencoder, text encoders, the transformer, export. Each stage goes on where it stopped."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import Tokenizer

from schnell.training.errors import TrainingDataError, TrainingError
from schnell.training.mini.anchors import prepare_t5
from schnell.training.mini.captions import Entry
from schnell.training.mini.codes import CodeLearner, Known
from schnell.training.mini.export import export_model
from schnell.training.mini.finish import DecoderLearner
from schnell.training.mini.flow import TextModels
from schnell.training.mini.latents import VIEWS, Encoded, encode_view, load_encoded, save_encoded
from schnell.training.mini.looks import measure_all_maps, measure_codes, measure_palette
from schnell.training.mini.loop import Budget, Learner, Show, run_learner, write_state
from schnell.training.mini.memory import memory_blocks, plan_memory, write_memory
from schnell.training.mini.networks import Shape, build_clip, build_t5, build_transformer, build_vae
from schnell.training.mini.pictures import Icons, read_icons
from schnell.training.mini.places import write_places
from schnell.training.mini.refit import Refit
from schnell.training.mini.sampling import Painter
from schnell.training.mini.scenes import Scenes, open_scenes
from schnell.training.mini.sources import DICTIONARY, KEYWORDS, NAMES, PICTURES, SENTENCE_ENCODER, fetch
from schnell.training.mini.text import (
    ClipReader,
    Lessons,
    TextLearner,
    draw_batch,
    measure_thumbnails,
)
from schnell.training.mini.tokens import ANCHORS, train_vocabulary, wrap
from schnell.training.mini.vae import VaeLearner
from schnell.training.mini.words import dictionary_words, icon_similarity, nearby_words, read_keywords

SHARES = {"vae": 0.4, "clip": 0.15, "codes": 0.3, "decoder": 0.15}
VOCABULARY_BATCHES = 25
VOCABULARY_BATCH = 2000
STATISTICS = 256


@dataclass(frozen=True)
class Data:
    """Icons with their words, and dictionary words with the icon each means."""

    icons: Icons
    pairs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """Where to work, for how long, how large, on what, and which folder to start from."""

    work: Path
    minutes: float
    device: torch.device
    show: Show
    shape: Shape = field(default_factory=Shape)
    start: Path | None = None
    updates: int | None = None
    captions: int = 1600

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
    data = prepare(plan.work, plan.show)
    vae = teach_vae(plan, data.icons)
    views = encode_views(plan, vae, data.icons)
    scenes = open_scenes(views)
    transformer = build_transformer(plan.shape).to(plan.device)
    write_places(transformer, scenes.directions)
    known = Known(measure_codes(views["white"]), measure_palette(views["white"], views["colour"]))
    text = teach_text(plan, data, transformer, known)
    painter = Painter(text, transformer, vae)
    write_looks(plan, painter, data.icons, scenes, known)
    finish_decoder(plan, painter, data.icons, scenes)
    folder = plan.work / "schnell-mini"
    export_model(painter, folder)
    plan.show("export", 1.0, str(folder))
    return folder


def prepare_data(work: Path, show: Show) -> Data:
    """Fetch the pinned packages, read the pictures and collect the words; kept in the work folder."""
    kept = work / "data.pt"
    if kept.exists():
        return read_data(kept)
    show("data", 0.0, "pictures and names")
    packages = work / "packages"
    icons = read_icons(fetch(PICTURES, packages), fetch(NAMES, packages))
    keywords = read_keywords(fetch(KEYWORDS, packages))
    icons = replace(icons, entries=tuple(add_keywords(e, keywords) for e in icons.entries))
    known = {word for entry in icons.entries for word in (entry.label, *entry.tags)}
    words = [w for w in dictionary_words(fetch(DICTIONARY, packages)) if w not in known]
    show("data", 0.3, f"{len(words)} dictionary words")
    pairs = nearby_words(icon_similarity(fetch(SENTENCE_ENCODER, packages), icons.entries, words), words)
    data = Data(icons, tuple(pairs))
    write_data(data, kept)
    show("data", 1.0, f"{len(icons)} icons, {len(pairs)} more words")
    return data


def add_keywords(entry: Entry, keywords: dict[str, tuple[str, ...]]) -> Entry:
    """An entry with the other list's words as looser ones."""
    extra = (word for word in keywords.get(entry.key, ()) if word != entry.label and word not in entry.tags)
    return replace(entry, extra=tuple(extra))


def write_data(data: Data, path: Path) -> None:
    """Keep the data in one file."""
    rows = [(e.label, e.tags, e.extra, e.key) for e in data.icons.entries]
    write_state({"pictures": data.icons.pictures, "entries": rows, "pairs": data.pairs}, path)


def read_data(path: Path) -> Data:
    """Raises TrainingDataError when the file is not one of ours."""
    try:
        kept = torch.load(path, weights_only=True)
        entries = tuple(Entry(*row) for row in kept["entries"])
        return Data(Icons(kept["pictures"], entries), tuple(kept["pairs"]))
    except (KeyError, TypeError, RuntimeError) as error:
        raise TrainingDataError(f"{path} cannot be read; delete it to fetch the data again") from error


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


def encode_views(plan: Plan, vae: AutoencoderKL, icons: Icons) -> dict[str, Encoded]:
    """Latents of every view, kept in the work folder."""
    folder = plan.work / "latents"
    folder.mkdir(exist_ok=True)
    views = {}
    for number, view in enumerate(VIEWS):
        path = folder / f"{view.name}.pt"
        if not path.exists():
            plan.show("latents", number / len(VIEWS), view.name)
            save_encoded(encode_view(vae, icons, view, number), path)
        views[view.name] = load_encoded(path)
    return views


def teach_text(plan: Plan, data: Data, transformer: FluxTransformer2DModel, known: Known) -> TextModels:
    """CLIP alone, then together with the transformer's text embedder; T5 takes CLIP's words."""
    vocabulary = make_vocabulary(plan, data)
    tokenizers = (wrap(vocabulary), wrap(vocabulary, ANCHORS))
    lessons = Lessons(data.icons.entries, data.pairs, measure_thumbnails(data.icons.pictures), tokenizers[0])
    size = len(tokenizers[0])
    clip = ClipReader(build_clip(plan.shape, size), plan.shape.width, len(data.icons))
    plan.run("clip", TextLearner(clip, lessons, plan.device))
    plan.run("codes", CodeLearner(transformer, clip, lessons, known, plan.device))
    t5 = build_t5(plan.shape, size)
    prepare_t5(t5, clip.encoder)
    return TextModels(clip.encoder.eval(), t5.eval(), tokenizers)


def make_vocabulary(plan: Plan, data: Data) -> Tokenizer:
    """The word pieces of many captions, kept in the work folder."""
    path = plan.work / "vocabulary.json"
    if not path.exists():
        rng = Random(0)
        batches = (draw_batch(rng, data.icons.entries, data.pairs, VOCABULARY_BATCH) for _ in range(VOCABULARY_BATCHES))
        texts = (text for batch in batches for text in batch.texts)
        train_vocabulary(texts, plan.shape.vocabulary).save(str(path))
    return Tokenizer.from_file(str(path))


def write_looks(plan: Plan, painter: Painter, icons: Icons, scenes: Scenes, known: Known) -> None:
    """The single blocks' memory of every icon, kept in the work folder."""
    transformer, path = painter.transformer.eval(), plan.state("memory")
    if path.exists():
        transformer.load_state_dict(torch.load(path, weights_only=True))
        return
    maps = measure_all_maps(scenes.views, icons, known.looks, known.palette)
    blocks = memory_blocks(transformer)
    memory = plan_memory(maps, len(blocks), blocks[0].mlp_hidden_dim)
    write_memory(transformer, memory, known.palette)
    Refit(painter, memory, scenes, icons, known.palette).run(plan.captions, plan.show)
    write_state(transformer.state_dict(), path)


def finish_decoder(plan: Plan, painter: Painter, icons: Icons, scenes: Scenes) -> None:
    """Polish the decoder on what the model draws, and at the pictures' edges."""
    learner = DecoderLearner(painter, icons, scenes, plan.device)
    plan.run("decoder", learner)
    learner.finish()


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
