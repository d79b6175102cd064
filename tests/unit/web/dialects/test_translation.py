from schnell.web.dialects.translation import EXTRA_FIELDS
from schnell.web.native.prompt_object import KNOWN_KEYS


def test_extra_fields_are_native_fields() -> None:
    assert set(EXTRA_FIELDS) <= set(KNOWN_KEYS)
    assert len(set(EXTRA_FIELDS)) == len(EXTRA_FIELDS)
