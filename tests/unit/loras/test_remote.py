import asyncio
import hashlib
from pathlib import Path

import pytest

from lora_libraries import TEAM, MakeLibrary, files_in, resolve, serve_gated, serve_hub
from mini_loras import lora_bytes
from schnell.clock import now
from schnell.database.session import Database
from schnell.errors import AdapterError, LoraDownloadError, LoraSourceError
from schnell.loras.files import AdapterFiles
from schnell.loras.repository import Labels
from schnell.loras.tokens import SourceTokens
from schnell.spec import FetchProgress, LoraRef
from tls_server import Asked, Reply, TlsServer


async def test_a_hub_lora_is_fetched_once_however_many_ask_and_then_found_offline(
    make: MakeLibrary, site: TlsServer, folder: Path
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


async def test_a_file_that_the_hub_announced_with_another_hash_is_refused(make: MakeLibrary, site: TlsServer) -> None:
    serve_hub(site, "owner/name", {"lora.safetensors": lora_bytes(1)})
    site.serve("/owner/name/resolve/main/lora.safetensors", lora_bytes(2))
    with pytest.raises(LoraDownloadError, match=r"'owner/name': .* not the hash"):
        await resolve(make(), "owner/name")


async def test_a_file_that_does_not_fit_is_refused_kept_nowhere_and_not_fetched_again(
    make: MakeLibrary, site: TlsServer, folder: Path, tmp_path: Path
) -> None:
    site.serve("/wide.safetensors", lora_bytes(1, width=3072))
    library = make()
    for _ in range(3):
        with pytest.raises(AdapterError, match=r"wide\.safetensors': this LoRA does not fit .* made for width 3072"):
            await resolve(library, site.url("/wide.safetensors"))
    assert len(site.asked) == 1
    assert files_in(folder) == files_in(tmp_path / "downloads") == []


async def test_the_longest_unused_downloads_go_first_and_the_librarys_files_stay(
    make: MakeLibrary, site: TlsServer, folder: Path, monkeypatch: pytest.MonkeyPatch
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


async def test_a_teams_own_token_opens_its_private_loras_to_it_alone(
    make: MakeLibrary, site: TlsServer, library_database: Database
) -> None:
    serve_gated(site, "me/private", lora_bytes(4), "hf_mine")
    library, tokens = make(), SourceTokens(library_database, ["secret"])
    with pytest.raises(LoraDownloadError):
        await resolve(library, "me/private")
    await tokens.keep(TEAM, "huggingface", "hf_mine", now())
    found = await resolve(library, "me/private")
    assert await resolve(library, "me/private") == found
    with pytest.raises(LoraDownloadError):
        await resolve(library, "me/private", team="team-2")
    await tokens.forget(TEAM, "huggingface")
    with pytest.raises(LoraDownloadError):
        await resolve(library, "me/private")


async def test_everyone_who_waits_for_one_download_is_told_how_far_it_is(make: MakeLibrary, site: TlsServer) -> None:
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


async def test_who_gives_up_waiting_does_not_stop_the_download_of_the_others(
    make: MakeLibrary, site: TlsServer
) -> None:
    data, begun, go_on = lora_bytes(6), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(_: Asked) -> Reply:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
        return Reply(200, data)

    site.routes["/style.safetensors"] = wait
    library = make()
    first, second = (asyncio.create_task(resolve(library, site.url("/style.safetensors"))) for _ in range(2))
    await begun.wait()
    first.cancel()
    await asyncio.wait([first])
    go_on.set()
    assert await second == [hashlib.sha256(data).hexdigest()]
    assert first.cancelled()
    assert len(site.asked) == 1


async def test_a_download_that_failed_is_tried_again_by_the_next_request(make: MakeLibrary, site: TlsServer) -> None:
    library, url = make(), site.url("/style.safetensors")
    with pytest.raises(LoraDownloadError, match="no such file"):
        await resolve(library, url)
    site.serve("/style.safetensors", lora_bytes(1))
    assert len(await resolve(library, url)) == 1


async def test_a_refused_file_is_fetched_again_after_a_while(
    make: MakeLibrary, site: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, url = make(), site.url("/style.safetensors")
    site.serve("/style.safetensors", lora_bytes(1, width=3072))
    with pytest.raises(AdapterError):
        await resolve(library, url)
    site.serve("/style.safetensors", lora_bytes(1))
    with pytest.raises(AdapterError, match="does not fit"):
        await resolve(library, url)
    monkeypatch.setattr("schnell.loras.remote._REFUSAL_SECONDS", -1)
    other = make()
    site.serve("/style.safetensors", lora_bytes(1, width=3072))
    with pytest.raises(AdapterError):
        await resolve(other, url)
    site.serve("/style.safetensors", lora_bytes(1))
    assert len(await resolve(other, url)) == 1


async def test_a_converted_file_that_is_gone_is_fetched_again(make: MakeLibrary, site: TlsServer, folder: Path) -> None:
    library, url = make(), site.url("/style.safetensors")
    site.serve("/style.safetensors", lora_bytes(1))
    [sha256] = await resolve(library, url)
    (folder / f"{sha256}.safetensors").unlink()
    assert await resolve(library, url) == [sha256]
    assert files_in(folder) == [f"{sha256}.safetensors"]
    assert len(site.asked) == 2


async def test_adding_fetches_anew_what_has_changed_at_its_place(make: MakeLibrary, site: TlsServer) -> None:
    library, url = make(), site.url("/style.safetensors")
    site.serve("/style.safetensors", lora_bytes(1))
    older = await resolve(library, url)
    site.serve("/style.safetensors", lora_bytes(2))
    assert await resolve(library, url) == older
    newer = await library.add(url, owner=TEAM, created_by="me")
    assert newer.sha256 == hashlib.sha256(lora_bytes(2)).hexdigest()
    assert await resolve(library, url) == [newer.sha256]


async def test_offline_nothing_is_asked(make: MakeLibrary, site: TlsServer) -> None:
    with pytest.raises(LoraSourceError, match="offline"):
        await resolve(make(offline=True), site.url("/style.safetensors"))
    assert site.asked == []


async def test_a_file_that_was_just_used_is_not_removed_however_little_room_there_is(
    make: MakeLibrary, site: TlsServer, folder: Path
) -> None:
    for number in (1, 2):
        site.serve(f"/{number}.safetensors", lora_bytes(number))
    shas = await resolve(make(cache_bytes=0), *(site.url(f"/{number}.safetensors") for number in (1, 2)))
    assert files_in(folder) == sorted(f"{sha}.safetensors" for sha in shas)
