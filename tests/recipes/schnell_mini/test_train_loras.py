import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from schnell.errors import TrainingError
from schnell.models.folder import embedded_home, open_model_folder
from schnell.training.low_rank import place_model
from schnell_mini.captions import IconLabel
from schnell_mini.contact_sheet import MAX_BYTES, QUALITIES, join_pictures
from schnell_mini.lora_drawing import LoraArtist
from schnell_mini.lora_styles import BUNDLED
from schnell_mini.pictures import Icons, compress_webp
from schnell_mini.train_loras import MAX_PREVIEW_BYTES, PREVIEW_QUALITIES, BundlePlan, fit_bundled, pick_bundled


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(TrainingError, match=r"'neon'.*black-light, flat, line"):
        pick_bundled(["neon"])


def test_a_preview_that_is_too_large_loses_quality_until_it_fits() -> None:
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    data = compress_webp(noise, MAX_PREVIEW_BYTES, PREVIEW_QUALITIES)
    assert len(data) <= MAX_PREVIEW_BYTES
    assert Image.open(io.BytesIO(data)).size == (256, 256)


def test_a_preview_that_cannot_fit_is_refused() -> None:
    with pytest.raises(TrainingError, match="larger than 30,000 bytes"):
        compress_webp(Image.effect_noise((1024, 1024), 120).convert("RGB"), MAX_PREVIEW_BYTES, PREVIEW_QUALITIES)


def test_one_call_makes_a_lora_its_card_and_its_preview(tmp_path: Path) -> None:
    base = place_model(open_model_folder(embedded_home() / "schnell-mini"), torch.device("cpu"))
    icon = torch.zeros(1, 4, 256, 256, dtype=torch.uint8)
    icon[:, :, 60:190, 60:190] = 255
    icons = Icons(icon, (IconLabel("white square", ()),))
    fitted = fit_bundled(BUNDLED[0], base, icons, BundlePlan(tmp_path, 1, steps=8, share=0.001), lambda _: None)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"black-light.{end}" for end in ("json", "safetensors", "webp")
    ]
    assert json.loads((tmp_path / "black-light.json").read_text("utf-8"))["trigger_words"] == ["black light"]
    assert fitted.steps == 8
    drawn = LoraArtist(loras=tmp_path).draw("black-light", ["star"])
    assert drawn.shape == (1, 3, 256, 256)


def test_a_contact_sheet_has_a_row_for_each_look() -> None:
    sheet = join_pictures(torch.rand(2, 3, 3, 128, 128))
    assert sheet.size == (3 * 98 - 2, 2 * 98 - 2)
    assert Image.open(io.BytesIO(compress_webp(sheet, MAX_BYTES, QUALITIES))).size == sheet.size
