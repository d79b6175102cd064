"""What is refused before a training begins, and how one is stopped; the training itself is run in a real browser."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from schnell.errors import ConflictError, InvalidFieldError, NotFoundError
from schnell.loras.library import LoraLibrary
from schnell.loras.trainings import LoraTrainings, TrainingPicture, TrainingWish

PICTURE = TrainingPicture("../../a.png", b"no picture", "an a")
WISH = TrainingWish("mystyle", minutes=1)


class Library:
    """A library that has room for everything."""

    async def check_room(self, owner: str, name: str | None) -> str:  # noqa: ARG002 - the library's form
        return name or ""


@pytest.fixture
def trainings(tmp_path: Path) -> LoraTrainings:
    return LoraTrainings(cast("LoraLibrary", Library()), tmp_path / "trainings", model="schnell-mini", most_minutes=5)


@pytest.mark.parametrize(
    ("wanted", "pictures", "field"),
    [
        (TrainingWish(" "), [PICTURE], "trigger"),
        (TrainingWish("a\nb"), [PICTURE], "trigger"),
        (TrainingWish("a", minutes=6), [PICTURE], "minutes"),
        (TrainingWish("a", minutes=float("nan")), [PICTURE], "minutes"),
        (WISH, [], "pictures"),
        (WISH, [PICTURE] * 201, "pictures"),
        (WISH, [TrainingPicture("a.svg", b"")], "pictures"),
    ],
)
async def test_what_cannot_be_trained_is_told_by_field(
    trainings: LoraTrainings, wanted: TrainingWish, pictures: list[TrainingPicture], field: str
) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        await trainings.start("team", "Ada", wanted, pictures)
    assert field in {each.field for each in refused.value.problems}


async def test_one_at_a_time_for_its_own_team_and_what_is_stopped_leaves_no_pictures(trainings: LoraTrainings) -> None:
    training = await trainings.start("team", "Ada", WISH, [PICTURE])
    assert (training.folder / "pictures" / "0000.txt").read_text() == "an a\n"
    with pytest.raises(ConflictError):
        await trainings.start("others", "Bob", WISH, [PICTURE])
    with pytest.raises(NotFoundError):
        trainings.find("others", training.id)
    with pytest.raises(NotFoundError):
        await trainings.cancel("others", training.id)
    async with asyncio.timeout(60):
        while training.process is None:  # noqa: ASYNC110 - it is started in a task
            await asyncio.sleep(0.01)
        await trainings.cancel("team", training.id)
        while (training.folder / "pictures").exists():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert training.stage == "cancelled"
    assert training.process.returncode is not None
    await trainings.close()
    assert not training.folder.exists()
