from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from counts import SOAK
from schnell.models.catalogue import find_model
from schnell.models.folder import ModelFolder
from schnell.spec import GenerationSpec, Job

JobFactory = Callable[..., Job]

# where a test names no count of its own; and no test fails for how long it takes on a machine that has other work
settings.register_profile("schnell", max_examples=100 if SOAK else 40, deadline=None)
settings.load_profile("schnell")


@pytest.fixture(scope="session")
def mini() -> ModelFolder:
    return find_model("schnell-mini")


@pytest.fixture(scope="session")
def random_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX-shaped model folder with random weights, another width than schnell-mini's."""
    from flux_folder import write_flux_folder

    return write_flux_folder(tmp_path_factory.mktemp("models") / "random-flux")


def make_job(prompt: str = "red apple", seed: int = 7, **spec: Any) -> Job:
    return Job(id="job", team_id="team", spec=GenerationSpec(prompt=prompt, **spec), seed=seed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: Playwright's loop stays in the thread, and no other test could then run one of its own."""
    items.sort(key=lambda item: "browser" in item.path.parts)
