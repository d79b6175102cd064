import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from schnell.adapters import convert_adapter, read_info, read_model_shape
from schnell.models.folder import ModelFolder, embedded_home
from schnell.training.low_rank import BaseModel, place_model
from schnell.training.samples import build_sampler
from schnell_mini.lora_drawing import install_file
from schnell_mini.lora_styles import BUNDLED, BundledLora
from schnell_mini.train_loras import MAX_BYTES, MAX_PREVIEW_BYTES, draw_preview

LORAS = embedded_home() / "loras"


@pytest.fixture(scope="module")
def base(mini: ModelFolder) -> BaseModel:
    return place_model(mini, torch.device("cpu"))


@pytest.mark.parametrize("lora", BUNDLED, ids=lambda lora: lora.name)
def test_a_shipped_lora_fits_the_embedded_model_and_is_small(
    lora: BundledLora, mini: ModelFolder, tmp_path: Path
) -> None:
    file = LORAS / f"{lora.name}.safetensors"
    assert file.stat().st_size <= MAX_BYTES
    info = read_info(convert_adapter(file, tmp_path, shape=read_model_shape(mini.path)).path)
    assert info.trigger_words == (lora.trigger,)
    assert info.rank == lora.rank


@pytest.mark.parametrize("lora", BUNDLED, ids=lambda lora: lora.name)
def test_a_shipped_lora_has_a_card_and_a_small_preview(lora: BundledLora) -> None:
    card = json.loads((LORAS / f"{lora.name}.json").read_text("utf-8"))
    assert (card["name"], card["trigger_words"]) == (lora.name, [lora.trigger])
    assert card["base_model"] == "schnell-mini"
    assert {source["licence"] for source in card["sources"]} == {"MIT"}
    preview = (LORAS / card["preview"]).read_bytes()
    assert len(preview) <= MAX_PREVIEW_BYTES
    assert Image.open(io.BytesIO(preview)).size == (512, 512)


def test_shipped_loras_look_different_from_each_other_and_from_the_base(base: BaseModel) -> None:
    sampler = build_sampler(["red apple"], base, "0.25")
    looks = [_thumbnail(sampler.draw(base.load("transformer"))[0])]
    for lora in BUNDLED:
        transformer, _ = install_file(base, LORAS / f"{lora.name}.safetensors")
        looks.append(_thumbnail(sampler.draw(transformer)[0]))
    apart = [(one - other).abs().mean().item() for i, one in enumerate(looks) for other in looks[i + 1 :]]
    assert min(apart) > 4  # of 255 levels, on 32 x 32 pixels


def _thumbnail(picture: Image.Image) -> torch.Tensor:
    small = picture.resize((32, 32), Image.Resampling.BOX)
    return torch.tensor(list(small.tobytes()), dtype=torch.float32)


def test_a_preview_is_made_from_the_file_itself(base: BaseModel) -> None:
    black_light = BUNDLED[0]
    preview = Image.open(io.BytesIO(draw_preview(black_light, LORAS / "black-light.safetensors", base)))
    assert max(preview.convert("L").resize((1, 1)).tobytes()) < 100
