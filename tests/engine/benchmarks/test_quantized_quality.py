"""How near the embedded model's pictures in quantized forms stay to those in bfloat16: floors, not figures."""

import pytest
from PIL import Image

from counts import SOAK
from schnell.benchmarks.quantized_quality import BFLOAT16_FORM, FORMS, PROMPTS, Likeness, draw_in_form
from schnell.models.folder import ModelFolder

_FEW = PROMPTS[1:6] if SOAK else PROMPTS[1:3]


@pytest.fixture(scope="module")
def exact(mini: ModelFolder) -> list[Image.Image]:
    return list(draw_in_form(mini, BFLOAT16_FORM, _FEW))


@pytest.mark.parametrize("name", FORMS)
def test_a_quantized_form_draws_nearly_what_bfloat16_draws(
    name: str, mini: ModelFolder, exact: list[Image.Image]
) -> None:
    alike = Likeness.between(list(draw_in_form(mini, FORMS[name], _FEW)), exact)
    assert alike.median_db >= (22 if name.startswith("int4") else 28)
    assert alike.median_db < 90  # other arithmetic did run
