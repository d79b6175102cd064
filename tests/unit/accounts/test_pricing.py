import pytest

from schnell.accounts.credits import PriceTable
from schnell.spec import ASPECT_RATIOS, GenerationSpec, LoraRef, resolve_size


def test_the_documented_prices() -> None:
    prices = PriceTable()
    assert prices.total(GenerationSpec("x")) == 1000
    assert prices.total(GenerationSpec("x", size=resolve_size(megapixels="0.25"))) == 400
    assert prices.total(GenerationSpec("x", steps=1)) == 400
    assert prices.total(GenerationSpec("x", num_outputs=4)) == 4000
    assert prices.total(GenerationSpec("x", loras=(LoraRef("a"), LoraRef("b")))) == 1400


@pytest.mark.parametrize("ratio", list(ASPECT_RATIOS))
@pytest.mark.parametrize(("megapixels", "price"), [("1", 1000), ("0.25", 400)])
def test_the_ratio_does_not_change_the_price(ratio: str, megapixels: str, price: int) -> None:
    assert PriceTable().total(GenerationSpec("x", size=resolve_size(ratio, megapixels))) == price


def test_custom_sizes_cost_by_the_quarter_megapixel() -> None:
    assert PriceTable().total(GenerationSpec("x", size=resolve_size("custom", width=1440, height=1440))) == 1800
    assert PriceTable().total(GenerationSpec("x", size=resolve_size("custom", width=256, height=256))) == 400


def test_an_operator_can_make_it_free() -> None:
    assert PriceTable(0, 0, 0).total(GenerationSpec("x", num_outputs=4)) == 0
