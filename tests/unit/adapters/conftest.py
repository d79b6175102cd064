from collections.abc import Callable
from functools import cache

import pytest

from lora_layouts import ConvertedLayout, convert_layout


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ConvertedLayout]:
    """The conversion of a layout by its name: made once, since a truncated SVD of a real-width layer takes seconds."""
    return cache(lambda layout: convert_layout(layout, tmp_path_factory.mktemp("layout")))
