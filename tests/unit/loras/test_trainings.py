"""What is refused before a training begins, and how one is stopped; the training itself is run in a real browser."""

import asyncio
import io
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from schnell.errors import ConflictError, InvalidFieldError, NotFoundError
from schnell.loras.library import LoraLibrary
from schnell.loras.trainings import LoraTrainings, Training, TrainingPicture, TrainingWish

WISH = TrainingWish("mystyle", minutes=1)


def picture(name: str = "../../a.png") -> TrainingPicture:
    return TrainingPicture(name, io.BytesIO(b"no picture"), "an a")


async def until_ended(trainings: LoraTrainings, training: Training) -> None:
    async with asyncio.timeout(60):
        while trainings.is_busy:  # noqa: ASYNC110 - it goes on in a task
            await asyncio.sleep(0.01)
    assert training.process is None or training.process.returncode is not None


class Library:
    """A library that has room for everything."""

    async def check_room(self, owner: str, name: str | None) -> str:  # noqa: ARG002 - the library's form
        await asyncio.sleep(0)
        return name or ""


@pytest.fixture
def trainings(tmp_path: Path) -> LoraTrainings:
    return LoraTrainings(
        cast("LoraLibrary", Library()), tmp_path / "trainings" / "mine", model="schnell-mini", most_minutes=5
    )


@pytest.mark.parametrize(
    ("wanted", "pictures", "field"),
    [
        (TrainingWish(" "), [picture()], "trigger"),
        (TrainingWish("a\nb"), [picture()], "trigger"),
        (TrainingWish("a", minutes=6), [picture()], "minutes"),
        (TrainingWish("a", minutes=float("nan")), [picture()], "minutes"),
        (WISH, [], "pictures"),
        (WISH, [picture()] * 201, "pictures"),
        (WISH, [picture("a.svg")], "pictures"),
    ],
)
async def test_what_cannot_be_trained_is_told_by_field(
    trainings: LoraTrainings, wanted: TrainingWish, pictures: list[TrainingPicture], field: str
) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        await trainings.start("team", "Ada", wanted, pictures)
    assert field in {each.field for each in refused.value.problems}


async def test_one_at_a_time_for_its_own_team_and_what_is_stopped_leaves_no_pictures(trainings: LoraTrainings) -> None:
    training = await trainings.start("team", "Ada", WISH, [picture()])
    assert (training.folder / "pictures" / "0000.txt").read_text() == "an a\n"
    with pytest.raises(ConflictError):
        await trainings.start("others", "Bob", WISH, [picture()])
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


async def test_of_several_that_begin_at_once_one_trains_and_closing_leaves_nothing(trainings: LoraTrainings) -> None:
    wanted = [trainings.start(team, "Ada", WISH, [picture()]) for team in ("one", "one", "others")]
    began = await asyncio.gather(*wanted, return_exceptions=True)
    [training] = [each for each in began if isinstance(each, Training)]
    assert sum(isinstance(each, ConflictError) for each in began) == 2
    assert trainings.latest("one") is training
    assert training.folder.exists()
    await trainings.close()
    assert training.stage == "cancelled"
    assert not training.folder.exists()


async def test_after_one_that_could_not_begin_another_can(trainings: LoraTrainings) -> None:
    broken = picture()
    broken.file.close()
    with pytest.raises(ValueError, match="closed"):
        await trainings.start("team", "Ada", WISH, [broken])
    trainings.check_free()


@pytest.mark.parametrize("most_minutes", [0])
async def test_a_server_that_trains_none_says_so(tmp_path: Path, most_minutes: float) -> None:
    trainings = LoraTrainings(cast("LoraLibrary", Library()), tmp_path, model="flux-schnell", most_minutes=most_minutes)
    with pytest.raises(NotFoundError, match="command line"):
        await trainings.start("team", "Ada", WISH, [picture()])


async def test_one_that_is_stopped_before_its_process_is_there_never_trains(
    trainings: LoraTrainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = await trainings.start("team", "Ada", WISH, [picture()])
    await trainings.cancel("team", at_once.id)
    await until_ended(trainings, at_once)
    assert at_once.process is None

    spawn = asyncio.create_subprocess_exec

    async def spawn_late(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await spawn(*command, **options)
        await trainings.cancel("team", (trainings.latest("team") or at_once).id)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn_late)
    late = await trainings.start("team", "Ada", WISH, [picture()])
    await until_ended(trainings, late)
    assert late.process is not None
    assert late.process.returncode == -signal.SIGKILL
    assert (late.stage, late.message) == ("cancelled", "")


async def test_a_process_whose_server_is_killed_ends(trainings: LoraTrainings) -> None:
    training = await trainings.start("team", "Ada", WISH, [picture()])
    async with asyncio.timeout(60):
        while training.process is None:  # noqa: ASYNC110 - it is started in a task
            await asyncio.sleep(0.01)
        assert training.process.stdin is not None
        training.process.stdin.close()  # as the system does for a server that is no more
        assert await training.process.wait() == 1
    await until_ended(trainings, training)
    # it got nowhere near the pictures, which are none
    assert "cannot be read" not in training.message


def test_what_killed_servers_left_is_removed(trainings: LoraTrainings, tmp_path: Path) -> None:
    for name in ("mine", "living", "killed"):
        (tmp_path / "trainings" / name / "pictures").mkdir(parents=True)
    trainings.sweep({"mine", "living"})
    assert {each.name for each in (tmp_path / "trainings").iterdir()} == {"mine", "living"}
