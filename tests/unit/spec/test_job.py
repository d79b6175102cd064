from pathlib import Path

from schnell.spec import AdapterUse, combine_adapters


def test_two_names_of_one_content_are_one_lora_with_their_scales_added() -> None:
    uses = [AdapterUse(name, sha256, Path(sha256), 0.5) for name, sha256 in (("a", "x"), ("b", "y"), ("c", "x"))]
    assert [(use.name, use.sha256, use.scale) for use in combine_adapters(uses)] == [("a", "x", 1.0), ("b", "y", 0.5)]


def test_added_scales_stay_in_their_range() -> None:
    assert combine_adapters([AdapterUse("a", "x", Path("x"), 2.0)] * 2)[0].scale == 3.0


def test_a_factor_multiplies_the_sum_and_stays_in_the_range() -> None:
    uses = [
        AdapterUse("a", "x", Path("x"), 0.5),
        AdapterUse("b", "x", Path("x"), 0.5),
        AdapterUse("c", "y", Path("y"), 2.5),
    ]
    assert [use.scale for use in combine_adapters(uses, 1.5)] == [1.5, 3.0]
