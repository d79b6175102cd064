from schnell_mini.lora_styles import BUNDLED


def test_only_black_light_answers_to_the_reference_documents_name() -> None:
    named = [lora.name for lora in BUNDLED if "fofr/flux-black-light" in lora.aliases]
    assert named == ["black-light"]


def test_names_and_triggers_are_unique() -> None:
    assert len({lora.name for lora in BUNDLED}) == len({lora.trigger for lora in BUNDLED}) == len(BUNDLED) == 5


def test_looks_with_a_ground_of_their_own_obey_no_other() -> None:
    assert {lora.name for lora in BUNDLED if lora.obeys_background} == {"line", "pixel"}
