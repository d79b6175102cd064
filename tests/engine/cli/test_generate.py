"""The command as people run it: a process of its own, files on disk."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schnell.provenance.file_parts import without_credentials
from schnell.provenance.verification import verify

PROMPT = "red apple on a blue background"


def schnell(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "schnell", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


@pytest.fixture(scope="module", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that signs is made here, and not in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHNELL_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def drawn(data_folder: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "a.png"
    schnell("generate", PROMPT, "--seed", "7", "--output", path)
    return path


def test_the_same_command_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    schnell("generate", PROMPT, "--seed", "7", "--output", tmp_path / "b.png")
    assert without_credentials((tmp_path / "b.png").read_bytes()) == without_credentials(drawn.read_bytes())


def test_no_proof_leaves_mark_and_credentials_out(drawn: Path, tmp_path: Path) -> None:
    schnell("generate", PROMPT, "--seed", "7", "--no-proof", "--output", tmp_path / "b.png")
    assert verify((tmp_path / "b.png").read_bytes()).credentials.state == "absent"
    plain, marked = (np.asarray(Image.open(path), np.int16) for path in (tmp_path / "b.png", drawn))
    assert 0 < np.abs(plain - marked).max() <= 4


def test_a_drawn_picture_verifies_and_can_be_drawn_again(drawn: Path) -> None:
    found = json.loads(schnell("verify", drawn, "--redo", "--json").stdout)
    assert (found["credentials"]["state"], found["mark"]["found"]) == ("trusted", True)
    assert found["receipt"]["agrees_with_mark"]
    assert found["redo"] == {"same": True, "reason": "the same file, byte for byte"}


def test_the_asked_background_is_around_the_picture(drawn: Path) -> None:
    pixels = np.asarray(Image.open(drawn), dtype=np.float64)
    assert pixels.shape == (1024, 1024, 3)
    border = np.median(np.concatenate([pixels[:64].reshape(-1, 3), pixels[-64:].reshape(-1, 3)]), axis=0)
    assert border[2] > max(border[0], border[1]) + 60


def test_from_repeats_a_picture_from_its_receipt(drawn: Path, tmp_path: Path) -> None:
    schnell("generate", "--from", drawn, "--output", tmp_path / "again.png")
    assert without_credentials((tmp_path / "again.png").read_bytes()) == without_credentials(drawn.read_bytes())


def test_outputs_have_the_next_seeds_and_each_can_be_made_alone(tmp_path: Path) -> None:
    size = ["--width", "256", "--height", "256", "--no-go-fast"]
    done = schnell(
        "generate",
        "tree",
        "--seed",
        "4294967295",
        "--num-outputs",
        "2",
        *size,
        "--json",
        "--output",
        tmp_path / "t.png",
    )
    images = json.loads(done.stdout)["images"]
    assert [image["receipt"]["seed"] for image in images] == [4294967295, 0]
    schnell("generate", "tree", "--seed", "0", *size, "--output", tmp_path / "alone.png")
    together, alone = Image.open(tmp_path / "t-1.png"), Image.open(tmp_path / "alone.png")
    assert np.abs(np.asarray(together, np.int16) - np.asarray(alone, np.int16)).max() <= 2


def test_json_says_which_arithmetic_ran_and_where_time_went(tmp_path: Path) -> None:
    done = schnell(
        "generate",
        "car",
        "--seed",
        "1",
        "--megapixels",
        "0.25",
        "--steps",
        "1",
        "--json",
        "--output",
        tmp_path / "c.webp",
    )
    answer = json.loads(done.stdout)
    assert answer["images"][0]["receipt"]["precision"] in {"float32", "bfloat16"}
    assert {"text", "denoise", "decode", "encode"} <= set(answer["timings"])
    assert Image.open(tmp_path / "c.webp").size == (512, 512)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--output", "x.png"], "prompt"),
        (["apple", "--steps", "5", "--output", "x.png"], "num_inference_steps"),
        (["apple", "--aspect-ratio", "7:3", "--output", "x.png"], "aspect_ratio"),
        (["apple", "--width", "256", "--output", "x.png"], "height"),
        (["apple", "--output", "x.gif"], "output_format"),
        (["apple", "--lora", "no-such-lora", "--output", "x.png"], "lora"),
        (["apple", "--model", "no-such-model", "--output", "x.png"], "no-such-model"),
        (["--from", "/no/such/file.png", "--output", "x.png"], "file.png"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(arguments: list[str], field: str, tmp_path: Path) -> None:
    done = schnell("generate", *[tmp_path / a if a.startswith("x.") else a for a in arguments], check=False)
    assert done.returncode in {1, 2}
    assert field in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
