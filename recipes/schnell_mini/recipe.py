"""The whole recipe, stage by stage: data, autoencoder, text encoders, transformer, export, decoder.

Every stage keeps its state or result in the work folder and goes on from there (`loop`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from schnell.errors import TrainingError
from schnell.models.folder import open_model_folder
from schnell.training.low_rank import place_model
from schnell_mini.anchors import prepare_t5
from schnell_mini.appearance_codes import fit_all_token_maps, measure_appearance, measure_background
from schnell_mini.autoencoder import AutoencoderLearner
from schnell_mini.caption_dataset import (
    CaptionDataset,
    CaptionSources,
    build_dataset,
    load_dataset,
    sample_texts,
    save_dataset,
)
from schnell_mini.code_conditioning import Codebook, CodeConditioner
from schnell_mini.code_training import CodeLearner
from schnell_mini.data import Data
from schnell_mini.decoder_finetuning import finetune_decoder, write_weights
from schnell_mini.drawing_blocks import BlockLearner
from schnell_mini.drawing_finetuning import DrawingLearner, measure_channels, read_captions
from schnell_mini.drawn_pictures import Studio
from schnell_mini.export import export_model
from schnell_mini.key_value_blocks import find_key_value_blocks, keep_off_directions, plan_units, write_key_value_blocks
from schnell_mini.latents import VIEWS, Encoded, View, encode_view, load_encoded, save_encoded
from schnell_mini.loop import Learner, Show, StageBudget, run_learner
from schnell_mini.networks import Shape, build_clip, build_t5, build_transformer, build_vae
from schnell_mini.picture_dataset import PictureDataset, build_picture_dataset
from schnell_mini.pictures import Icons
from schnell_mini.position_weights import divide_means_by_time, read_directions, write_position_weights
from schnell_mini.sampling import MiniPipeline, load_pipeline
from schnell_mini.subjects import write_subjects
from schnell_mini.text_classifier import ClipClassifier, ClipLearner
from schnell_mini.text_models import TextModels
from schnell_mini.tokens import ANCHORS, build_tokenizer, token_ids, train_vocabulary

#: Each stage's share of the minutes.
STAGE_SHARES = {"vae": 0.25, "clip": 0.15, "codes": 0.2, "blocks": 0.2, "drawing": 0.05, "decoder": 0.15}
VOCABULARY_TEXTS = 60_000
STATISTICS = 256
SAMPLE_TEXTS = 512


@dataclass(frozen=True)
class Plan:
    """Where to work, for how long, how large, on what, and which folder to start from.

    `updates` ends each stage after so many. `captions` is how many the text encoder learns from, `colourings` how often
    each view is encoded, `drawn` the share of the pictures that the decoder is finetuned on.
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
    drawn: float = 1.0

    def budget(self, stage: str) -> StageBudget:
        """A stage's share of the minutes."""
        return StageBudget(STAGE_SHARES[stage] * self.minutes * 60, self.updates)

    def state(self, stage: str) -> Path:
        """The file of a stage's state."""
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
        torch.set_float32_matmul_precision("high")  # TF32 for all that is not in bfloat16: exact enough for positions
    data = prepare(plan.work, plan.show)
    vae = train_autoencoder(plan, data.icons)
    views = encode_views(plan, vae, data.icons)
    codebook = Codebook(
        measure_appearance(views["white"][0]), measure_background(views["white"][0], views["colour"][0])
    )
    torch.manual_seed(0)
    transformer = build_transformer(plan.shape).to(plan.device)
    pipeline = MiniPipeline(train_text_encoders(plan, data, transformer, codebook), transformer, vae)
    train_drawing(plan, pipeline, data, views, codebook)
    folder = plan.work / "schnell-mini"
    export_model(pipeline, folder)
    finetune_exported(plan, folder, data.icons)
    write_subjects(load_pipeline(folder), [label.name for label in data.icons.labels], folder)
    plan.show("export", 1.0, str(folder))
    return folder


def finetune_exported(plan: Plan, folder: Path, icons: Icons) -> None:
    """Finetune the decoder of an exported folder on what it draws; there are no LoRAs yet."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").float().to(plan.device).eval()
    studio = Studio(place_model(open_model_folder(folder), plan.device), vae, icons, loras=None)
    finetuned = finetune_decoder(studio, plan.work, plan.budget("decoder"), plan.drawn, plan.show)
    write_weights(finetuned, folder / "vae")


def train_autoencoder(plan: Plan, icons: Icons) -> AutoencoderKL:
    """The autoencoder, trained from nothing or taken from the folder to start from.

    Its shift and scale are set to bring latents to zero mean and unit variance.
    """
    if plan.start is not None:
        return AutoencoderKL.from_pretrained(plan.start / "vae").float().to(plan.device).eval()
    learner = AutoencoderLearner(build_vae(plan.shape), icons, plan.device)
    plan.run("vae", learner)
    vae = learner.vae.eval()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    count = min(STATISTICS, len(icons))
    sample = encode_view(vae, replace(icons, pictures=icons.pictures[:count], labels=icons.labels[:count]), VIEWS[0], 0)
    values = sample.latents.float()
    vae.register_to_config(shift_factor=float(values.mean()), scaling_factor=float(1 / values.std()))
    return vae


def encode_views(plan: Plan, vae: AutoencoderKL, icons: Icons) -> dict[str, tuple[Encoded, ...]]:
    """Latents of every view by its name, in several colourings unless it is all white; kept in the work folder."""
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


def train_text_encoders(plan: Plan, data: Data, transformer: FluxTransformer2DModel, codebook: Codebook) -> TextModels:
    """Train CLIP alone, then together with the transformer's text embedder; T5 gets random weights."""
    vocabulary = make_vocabulary(plan, data.sources)
    tokenizers = (build_tokenizer(vocabulary), build_tokenizer(vocabulary, ANCHORS))
    size = len(tokenizers[0])
    dataset = make_caption_dataset(plan, data.sources, vocabulary).to(plan.device)
    classifier = ClipClassifier(build_clip(plan.shape, size), plan.shape.width, len(data.icons))
    plan.run("clip", ClipLearner(classifier, dataset, plan.device))
    learner = CodeLearner(transformer, classifier, dataset, codebook, plan.device)
    plan.run("codes", learner)
    learner.finish()
    torch.manual_seed(0)
    t5 = build_t5(plan.shape, size)
    prepare_t5(t5)
    return TextModels(classifier.encoder.eval(), t5.to(plan.device).eval(), tokenizers)


def make_vocabulary(plan: Plan, sources: CaptionSources) -> Tokenizer:
    """The vocabulary of both text encoders, kept in the work folder."""
    path = plan.work / "vocabulary.json"
    if not path.exists():
        train_vocabulary(sample_texts(sources, VOCABULARY_TEXTS), plan.shape.vocabulary).save(str(path))
    return Tokenizer.from_file(str(path))


def make_caption_dataset(plan: Plan, sources: CaptionSources, vocabulary: Tokenizer) -> CaptionDataset:
    """The captions to learn from, kept in the work folder."""
    path = plan.work / "captions.pt"
    if not path.exists():
        plan.show("captions", 0.0, f"{plan.captions} captions")
        save_dataset(build_dataset(sources, vocabulary, plan.captions), path)
        plan.show("captions", 1.0, f"{plan.captions} captions")
    return load_dataset(path)


def train_drawing(
    plan: Plan, pipeline: MiniPipeline, data: Data, views: dict[str, tuple[Encoded, ...]], codebook: Codebook
) -> None:
    """Compute the weights that have a closed form, then train the drawing blocks."""
    transformer, dataset = pipeline.transformer, build_picture_dataset(views, plan.device)
    first_views = {name: same[0] for name, same in views.items()}
    write_closed_form(transformer.to("cpu"), data.icons, dataset.directions.cpu(), first_views, codebook)
    transformer.to(plan.device)
    states = encode_sample_texts(pipeline.text.t5, pipeline.text.tokenizers[1], data.sources)
    conditioner = CodeConditioner(codebook.to(plan.device), states)
    blocks = BlockLearner(transformer, conditioner, dataset)
    plan.run("blocks", blocks)
    blocks.finish()
    finetune_drawing(plan, pipeline, dataset, data.icons)


def finetune_drawing(plan: Plan, pipeline: MiniPipeline, dataset: PictureDataset, icons: Icons) -> None:
    """Finetune the drawing blocks of a model that is finished but for its decoder."""
    seen = measure_channels(pipeline.vae, dataset.views["white"][0].latents[:16].float())
    plan.show("captions", 0.0, "as CLIP reads them")
    learner = DrawingLearner(pipeline.transformer, read_captions(pipeline.text, icons.labels), dataset, seen)
    plan.run("drawing", learner)
    learner.finish()


def refine_drawing(plan: Plan, folder: Path, icons: Icons, target: Path) -> None:
    """Finetune a finished model's drawing blocks, and write the transformer's weights into `target` in half precision.

    A model from before the placement was kept out of pictures (`keep_off_directions`) is brought up to that first.
    """
    (plan.work / "state").mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(folder, str(plan.device))
    divide_means_by_time(pipeline.transformer)
    directions = read_directions(pipeline.transformer)
    keep_off_directions(pipeline.transformer, directions)
    dataset = build_picture_dataset(encode_views(plan, pipeline.vae, icons), plan.device, directions)
    finetune_drawing(plan, pipeline, dataset, icons)
    write_weights(pipeline.transformer, target)


def write_closed_form(
    transformer: FluxTransformer2DModel,
    icons: Icons,
    directions: torch.Tensor,
    views: dict[str, Encoded],
    codebook: Codebook,
) -> None:
    """Write position weights, key-value blocks, adapter block, time embedding and last layer, on the CPU."""
    write_position_weights(transformer, directions)
    maps = fit_all_token_maps(views, icons, codebook.appearance, codebook.background)
    blocks = find_key_value_blocks(transformer)
    write_key_value_blocks(transformer, plan_units(maps, len(blocks), blocks[0].mlp_hidden_dim), codebook.background)
    divide_means_by_time(transformer)
    keep_off_directions(transformer, directions)


@torch.no_grad()
def encode_sample_texts(
    t5: T5EncoderModel, tokenizer: PreTrainedTokenizerFast, sources: CaptionSources
) -> torch.Tensor:
    """T5's states for some captions `[M, 32, D]`."""
    ids = token_ids(tokenizer, sample_texts(sources, SAMPLE_TEXTS, seed=1))
    states: torch.Tensor = t5(input_ids=ids.to(t5.device))[0]
    return states
