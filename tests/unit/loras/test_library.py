import asyncio
import hashlib
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mini_loras import lora_bytes, trainer_tar, write_lora
from schnell.adapters import LowRank, read_adapter, read_model_shape
from schnell.database.migration import migrate
from schnell.database.session import Database
from schnell.errors import AdapterError, ConflictError, InvalidFieldError, LoraDownloadError, NotFoundError
from schnell.loras.bundled import read_bundled
from schnell.loras.files import AdapterFiles
from schnell.loras.library import LoraLibrary
from schnell.loras.remote import RemoteLoras
from schnell.loras.repository import Labels
from schnell.loras.sources import SourceSites
from schnell.loras.tokens import SourceTokens
from schnell.models.folder import embedded_home
from schnell.outbound.addresses import AddressPolicy
from schnell.outbound.downloads import Downloader
from schnell.spec import FetchProgress, LoraRef
from tls_server import Reply, Route, TlsServer

TEAM = "team-1"
Make = Callable[..., LoraLibrary]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = Database(f"sqlite:{tmp_path / 'schnell.db'}")
    await migrate(found)
    yield found
    await found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


@pytest.fixture
def make(database: Database, folder: Path, tmp_path: Path, site: TlsServer) -> Make:
    shape = read_model_shape(embedded_home() / "schnell-mini")

    def build(*, offline: bool = False, per_team: int = 200, cache_bytes: int = 10**9) -> LoraLibrary:
        policy = AddressPolicy(private_networks=("127.0.0.0/8", "::1/128"))
        authorities = site.client_context()
        downloader = Downloader(tmp_path / "downloads", policy, offline=offline, authorities=authorities)
        files = AdapterFiles(folder, shape, 10**7)
        remote = RemoteLoras(
            database,
            files,
            downloader,
            sites=SourceSites(hub=site.url(), civitai=site.url("/civitai"), replicate=site.url("/replicate")),
            tokens=SourceTokens(database, ["secret"]),
            cache_bytes=cache_bytes,
        )
        bundled = read_bundled(tmp_path / "bundled")
        return LoraLibrary(database, files, remote, bundled=bundled, per_team=per_team)

    return build


def bundle(folder: Path, name: str, **card: Any) -> None:
    folder.mkdir(exist_ok=True)
    write_lora(folder / f"{name}.safetensors", seed=99)
    (folder / f"{name}.json").write_text(json.dumps(card))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def resolve(library: LoraLibrary, *references: str, team: str = TEAM) -> list[str]:
    return [use.sha256 for use in await library.resolve([LoraRef(each) for each in references], team)]


async def add(library: LoraLibrary, name: str, seed: int, owner: str = TEAM) -> str:
    file = io.BytesIO(lora_bytes(seed))
    return (await library.add_file(file, owner=owner, labels=Labels(name), file_name="f", created_by="me")).sha256


def serve_hub(site: TlsServer, repository: str, files: dict[str, bytes], card: dict[str, Any] | None = None) -> None:
    listing = [
        {"rfilename": name, "size": len(data), "lfs": {"sha256": hashlib.sha256(data).hexdigest()}}
        for name, data in files.items()
    ]
    site.serve_json(f"/api/models/{repository}", json.dumps({"siblings": listing, "cardData": card or {}}))
    for name, data in files.items():
        site.serve(f"/{repository}/resolve/main/{name}", data)


async def test_a_teams_name_goes_before_a_public_one_before_a_bundled_one(make: Make, tmp_path: Path) -> None:
    bundle(tmp_path / "bundled", "style")
    library = make()
    bundled = await resolve(library, "style")
    public = await add(library, "style", 1, owner="")
    assert await resolve(library, "Style") == [public] != bundled
    own = await add(library, "style", 2)
    assert await resolve(library, "style") == [own]
    assert await resolve(library, "style", team="team-2") == [public]


async def test_a_bundled_lora_answers_to_its_aliases_without_any_network(make: Make, tmp_path: Path) -> None:
    bundle(tmp_path / "bundled", "black-light", aliases=["fofr/flux-black-light"], trigger_words=["black light"])
    library = make(offline=True)
    named, alias = await resolve(library, "black-light", "fofr/flux-black-light")
    assert named == alias
    shown = await library.show("fofr/flux-black-light", TEAM)
    assert (shown.name, shown.trigger_words, shown.source) == ("black-light", ("black light",), "bundled")


async def test_an_unknown_name_is_refused_naming_the_known_ones(make: Make) -> None:
    library = make()
    await add(library, "watercolour", 1)
    with pytest.raises(InvalidFieldError, match="there are watercolour") as caught:
        await library.resolve([LoraRef("watercolour"), LoraRef("nope")], TEAM)
    assert caught.value.problems[0].field == "extra_lora"


async def test_a_hub_lora_is_fetched_once_however_many_ask_and_then_found_offline(
    make: Make, site: TlsServer, folder: Path
) -> None:
    data = lora_bytes(3)
    serve_hub(site, "owner/name", {"README.md": b"", "style.safetensors": data})
    library = make()
    answers = await asyncio.gather(*(resolve(library, "owner/name") for _ in range(20)))
    assert answers == [[hashlib.sha256(data).hexdigest()]] * 20
    assert [asked.path.partition("?")[0] for asked in site.asked] == [
        "/api/models/owner/name",
        "/owner/name/resolve/main/style.safetensors",
    ]
    assert await resolve(make(offline=True), "huggingface.co/owner/name") == answers[0]
    assert files_in(folder) == [f"{answers[0][0]}.safetensors"]


async def test_a_repository_of_several_loras_is_refused_naming_them(make: Make, site: TlsServer) -> None:
    serve_hub(site, "owner/name", {"a.safetensors": lora_bytes(1), "b.safetensors": lora_bytes(2)})
    with pytest.raises(LoraDownloadError, match=r"a\.safetensors, b\.safetensors"):
        await resolve(make(), "owner/name")
    assert len(await resolve(make(), "huggingface.co/owner/name/b.safetensors")) == 1


async def test_pefts_configuration_in_a_repository_sets_the_scale(make: Make, site: TlsServer) -> None:
    data = lora_bytes(4)
    config = json.dumps({"r": 2, "lora_alpha": 6}).encode()
    serve_hub(site, "owner/peft", {"adapter_model.safetensors": data, "adapter_config.json": config})
    serve_hub(site, "owner/plain", {"adapter_model.safetensors": data})
    library = make()
    uses = await library.resolve([LoraRef("owner/peft"), LoraRef("owner/plain")], TEAM)
    scaled, plain = (next(iter(read_adapter(use.path).modules.values())) for use in uses)
    assert isinstance(scaled, LowRank)
    assert isinstance(plain, LowRank)
    assert (scaled.b == 3 * plain.b).all()


async def test_a_file_that_the_hub_announced_with_another_hash_is_refused(make: Make, site: TlsServer) -> None:
    serve_hub(site, "owner/name", {"lora.safetensors": lora_bytes(1)})
    site.serve("/owner/name/resolve/main/lora.safetensors", lora_bytes(2))
    with pytest.raises(LoraDownloadError, match=r"'owner/name': .* not the hash"):
        await resolve(make(), "owner/name")


async def test_owner_and_name_that_the_hub_lacks_are_looked_for_at_replicate(make: Make, site: TlsServer) -> None:
    site.redirect("/replicate/owner/trained/_weights", site.url("/delivery/trained_model.tar", "127.0.0.1"))
    site.serve("/delivery/trained_model.tar", trainer_tar(lora_bytes(5), "PIXEL"))
    library = make()
    added = await library.add("owner/trained", owner=TEAM, created_by="me")
    assert (added.name, added.trigger_words) == ("trained", ("PIXEL",))
    with pytest.raises(LoraDownloadError, match="Hugging Face shows no owner/nothing, and localhost has no such file"):
        await resolve(library, "owner/nothing")


async def test_civitai_tells_file_hash_trigger_words_and_base_model(make: Make, site: TlsServer) -> None:
    data = lora_bytes(6)
    digest = hashlib.sha256(data).hexdigest()
    file = {"name": "x.safetensors", "downloadUrl": site.url("/civitai/get/7"), "hashes": {"SHA256": digest.upper()}}
    version = {"id": 7, "trainedWords": ["xyz\u0000", "\n"], "baseModel": "Flux.1 S", "files": [file]}
    site.serve_json("/civitai/api/v1/models/12", json.dumps({"name": "My Style! \u0000", "modelVersions": [version]}))
    site.serve("/civitai/get/7", data)
    added = await make().add("civitai.com/models/12", owner=TEAM, created_by="me")
    assert (added.name, added.trigger_words, added.base_model) == ("my-style", ("xyz",), ("Flux.1 S",))


async def test_a_file_that_does_not_fit_is_refused_kept_nowhere_and_not_fetched_again(
    make: Make, site: TlsServer, folder: Path, tmp_path: Path
) -> None:
    site.serve("/wide.safetensors", lora_bytes(1, width=3072))
    library = make()
    for _ in range(3):
        with pytest.raises(AdapterError, match=r"wide\.safetensors': this LoRA does not fit .* made for width 3072"):
            await resolve(library, site.url("/wide.safetensors"))
    assert len(site.asked) == 1
    assert files_in(folder) == files_in(tmp_path / "downloads") == []


async def test_the_longest_unused_downloads_go_first_and_the_librarys_files_stay(
    make: Make, site: TlsServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdapterFiles, "is_past_grace", lambda *_: True)
    monkeypatch.setattr(AdapterFiles, "is_needed", lambda *_: False)
    for number in range(4):
        site.serve(f"/{number}.safetensors", lora_bytes(number))
    roomy = make()
    kept = await roomy.add(site.url("/0.safetensors"), owner=TEAM, labels=Labels("kept"), created_by="me")
    library = make(cache_bytes=kept.bytes * 5 // 2)
    shas = [(await resolve(library, site.url(f"/{number}.safetensors")))[0] for number in (1, 2, 3)]
    assert files_in(folder) == sorted(f"{sha}.safetensors" for sha in (kept.sha256, *shas[1:]))


async def test_removing_takes_the_file_away_unless_another_entry_uses_it(make: Make, folder: Path) -> None:
    library = make()
    await add(library, "one", 1)
    await add(library, "two", 1)
    await library.remove("one", TEAM)
    assert len(files_in(folder)) == 1
    await library.remove("two", TEAM)
    assert files_in(folder) == []
    with pytest.raises(NotFoundError):
        await library.remove("two", TEAM)


async def test_a_team_cannot_remove_what_is_public_or_anothers(make: Make) -> None:
    library = make()
    await add(library, "shared", 1, owner="")
    await add(library, "theirs", 2, owner="team-2")
    for name in ("shared", "theirs"):
        with pytest.raises(NotFoundError):
            await library.remove(name, TEAM)
    with pytest.raises(NotFoundError):
        await library.show("theirs", TEAM)


async def test_a_taken_name_a_bad_name_and_a_full_library_are_refused(make: Make, folder: Path) -> None:
    library = make(per_team=1)
    await add(library, "My Style", 1)
    assert (await library.list(TEAM))[0].name == "my-style"
    with pytest.raises(InvalidFieldError, match="the most it may have"):
        await add(library, "other", 2)
    roomy = make()
    with pytest.raises(ConflictError, match="my-style"):
        await add(roomy, "my-style", 2)
    with pytest.raises(InvalidFieldError, match="letters"):
        await add(roomy, "../x", 3)
    assert len(files_in(folder)) == 1


async def test_a_lora_whose_file_is_gone_says_so(make: Make, folder: Path) -> None:
    library = make()
    sha256 = await add(library, "style", 1)
    (folder / f"{sha256}.safetensors").unlink()
    with pytest.raises(AdapterError, match="add it again"):
        await resolve(library, "style")


def serve_gated(site: TlsServer, repository: str, data: bytes, token: str) -> None:
    """A hub repository that only the holder of a token sees."""
    serve_hub(site, repository, {"lora.safetensors": data})
    for path in (f"/api/models/{repository}", f"/{repository}/resolve/main/lora.safetensors"):
        site.routes[path] = _gated(site.routes[path], token)


def written_to(folder: Path) -> bytes:
    """The bytes of the database, its journal included."""
    return b"".join(file.read_bytes() for file in folder.glob("schnell.db*"))


def _gated(shown: Route, token: str) -> Route:
    return lambda asked: shown(asked) if asked.headers.get("authorization") == f"Bearer {token}" else Reply(401)


async def test_a_teams_own_token_opens_its_private_loras_to_it_alone(
    make: Make, site: TlsServer, database: Database
) -> None:
    serve_gated(site, "me/private", lora_bytes(4), "hf_mine")
    library, tokens = make(), SourceTokens(database, ["secret"])
    with pytest.raises(LoraDownloadError):
        await resolve(library, "me/private")
    await tokens.keep(TEAM, "huggingface", "hf_mine", datetime.now(UTC))
    found = await resolve(library, "me/private")
    assert await resolve(library, "me/private") == found
    with pytest.raises(LoraDownloadError):
        await resolve(library, "me/private", team="team-2")
    await tokens.forget(TEAM, "huggingface")
    with pytest.raises(LoraDownloadError):
        await resolve(library, "me/private")


async def test_a_token_is_encrypted_where_it_lies_and_in_no_log(
    make: Make, site: TlsServer, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    serve_gated(site, "me/private", lora_bytes(4), "hf_very_secret")
    await SourceTokens(database, ["secret"]).keep(TEAM, "huggingface", "hf_very_secret", datetime.now(UTC))
    assert await SourceTokens(database, ["newer", "secret"]).of_team(TEAM) == {"huggingface": "hf_very_secret"}
    assert await SourceTokens(database, ["another"]).of_team(TEAM) == {}
    await resolve(make(), "me/private")
    kept = written_to(tmp_path)
    assert kept
    assert b"hf_very_secret" not in kept
    assert "hf_very_secret" not in caplog.text


async def test_everyone_who_waits_for_one_download_is_told_how_far_it_is(make: Make, site: TlsServer) -> None:
    data = lora_bytes(6)
    serve_hub(site, "me/style", {"lora.safetensors": data})
    library = make()
    told: dict[str, list[FetchProgress]] = {"one": [], "two": []}
    refs = [LoraRef("me/style")]
    await asyncio.gather(
        library.resolve(refs, TEAM, told["one"].append), library.resolve(refs, "team-2", told["two"].append)
    )
    for heard in told.values():
        assert heard[-1] == FetchProgress("me/style", len(data), len(data))
    assert [asked.path for asked in site.asked].count("/me/style/resolve/main/lora.safetensors") == 1
