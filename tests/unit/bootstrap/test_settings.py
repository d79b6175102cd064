from pathlib import Path

import pytest

from schnell.bootstrap import build_store, read_settings
from schnell.bootstrap.memory import wishes_of
from schnell.engine.memory_plan import Wishes
from schnell.errors import ConfigurationError
from schnell.models.folder import compiled_home, models_home
from schnell.settings import OTHER_NAMES, Settings


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schnell.toml").write_text('port = 9000\nlog_level = "debug"\ncors_origins = ["https://a.example"]\n')
    monkeypatch.setenv("SCHNELL_PORT", "9001")
    monkeypatch.setenv("SCHNELL_LINK_SECRETS", "new, old")
    settings = read_settings()
    assert (settings.port, settings.log_level) == (9001, "debug")
    assert (settings.cors_origins, settings.link_secrets) == (("https://a.example",), ("new", "old"))
    assert read_settings(port=9002).port == 9002


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "x"),
        ("LINK_SECONDS", "604801"),
        ("ENVIRONMENT", "a/b"),
        ("LOG_LEVEL", "loud"),
        ("PRECISION", "fp8"),
        ("LORA_RANK", "256"),
        ("OFFLOAD", "all"),
    ],
)
def test_an_unusable_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SCHNELL_{name}", value)
    with pytest.raises(ConfigurationError, match=f"SCHNELL_{name}"):
        read_settings()


def test_what_a_memory_plan_decides_is_its_own_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wishes_of(read_settings()) == Wishes()
    for name in ("PRECISION", "LORA_SLOTS", "LORA_RANK", "OFFLOAD", "TEXT_ENCODERS", "BATCH_ROWS", "DECODE"):
        monkeypatch.setenv(f"SCHNELL_{name}", "auto")
    assert wishes_of(read_settings()) == Wishes()
    set_here = {"precision": "int8", "lora_slots": 4, "lora_rank": 32, "offload": "text", "text_encoders": "cpu"}
    for name, value in (set_here | {"batch_rows": 2, "decode": "tiles"}).items():
        monkeypatch.setenv(f"SCHNELL_{name.upper()}", str(value))
    assert wishes_of(read_settings()) == Wishes("int8", 4, 32, "text", "cpu", 2, "tiles")


def test_a_misspelt_key_of_the_file_is_named_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schnell.toml").write_text("prot = 9000\n")
    with pytest.raises(ConfigurationError, match="SCHNELL_PROT is no setting; did you mean SCHNELL_PORT"):
        read_settings()


@pytest.mark.parametrize("name", ["PUBLIC_ULR", "RATE_LIMITS", "LORA_MAXBYTES"])
def test_a_misspelt_name_of_the_environment_is_named_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"SCHNELL_{name}", "1")
    with pytest.raises(ConfigurationError, match=rf"SCHNELL_{name} is no setting; did you mean SCHNELL_"):
        read_settings()


def test_every_setting_has_a_name_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, *OTHER_NAMES):
        monkeypatch.setenv(f"SCHNELL_{name.upper()}", "x")
    assert Settings.unknown_names() == []


@pytest.mark.parametrize(
    ("value", "nearest"), [("lots", ""), ("60/min", "60/minute"), ("5 per s", "5/second"), ("60/parsec", "")]
)
def test_a_rate_that_cannot_be_counted_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, value: str, nearest: str
) -> None:
    monkeypatch.setenv("SCHNELL_RATE_LIMIT", value)
    with pytest.raises(ConfigurationError, match=f"SCHNELL_RATE_LIMIT: must look like .*{nearest}"):
        read_settings()


def test_a_data_folder_that_is_a_file_is_refused_as_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"--data-dir: .*file is a file, and must be a folder"):
        read_settings(data_dir=tmp_path / "file")
    monkeypatch.setenv("SCHNELL_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match=r"SCHNELL_DATA_DIR: .*file is a file, and must be a folder"):
        read_settings()


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_seconds_are_finite(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SCHNELL_LORA_SECONDS", value)
    with pytest.raises(ConfigurationError, match="SCHNELL_LORA_SECONDS"):
        read_settings()


def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schnell.toml").write_text("port = = 9000\n")
    with pytest.raises(ConfigurationError, match=r"schnell\.toml"):
        read_settings()


def test_the_file_may_say_where_models_and_what_can_be_made_again_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schnell.toml").write_text('models_dir = "/big/models"\ncache_dir = "/big/cache"\n')
    # set and taken away again, so that what read_settings puts there ends with the test
    for name in ("SCHNELL_MODELS_DIR", "SCHNELL_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    read_settings()
    assert (models_home(), compiled_home()) == (Path("/big/models"), Path("/big/cache/compiled"))
    monkeypatch.setenv("SCHNELL_MODELS_DIR", "/other")
    read_settings()
    assert models_home() == Path("/other")


def test_an_unknown_store_is_refused_with_the_known_forms(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="file:PATH or s3://"):
        build_store(read_settings(data_dir=tmp_path, assets_url="ftp://x"))


def test_the_example_of_a_settings_file_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SCHNELL_MODELS_DIR", "SCHNELL_CACHE_DIR"):
        monkeypatch.setenv(name, "/set")
    monkeypatch.setenv("SCHNELL_CONFIG", str(Path(__file__).parents[3] / "deploy" / "schnell.toml"))
    settings = read_settings()
    assert (settings.public_url, settings.rate_limit) == ("https://pictures.example", "60/minute")
