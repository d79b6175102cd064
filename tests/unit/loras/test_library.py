import io
from pathlib import Path

import pytest

from lora_libraries import TEAM, MakeLibrary, add, bundle, files_in, resolve
from mini_loras import lora_bytes, write_lora
from schnell.errors import AdapterError, ConflictError, InvalidFieldError, NotFoundError
from schnell.loras.references import check_name
from schnell.loras.repository import PUBLIC, Labels
from schnell.spec import LoraRef
from tls_server import TlsServer


async def test_a_teams_name_goes_before_a_public_one_before_a_bundled_one(make: MakeLibrary, tmp_path: Path) -> None:
    bundle(tmp_path / "bundled", "style")
    library = make()
    bundled = await resolve(library, "style")
    public = await add(library, "style", 1, owner="")
    assert await resolve(library, "Style") == [public] != bundled
    own = await add(library, "style", 2)
    assert await resolve(library, "style") == [own]
    assert await resolve(library, "style", team="team-2") == [public]


async def test_a_bundled_lora_answers_to_its_aliases_without_any_network(make: MakeLibrary, tmp_path: Path) -> None:
    bundle(tmp_path / "bundled", "black-light", aliases=["fofr/flux-black-light"], trigger_words=["black light"])
    library = make(offline=True)
    named, alias = await resolve(library, "black-light", "fofr/flux-black-light")
    assert named == alias
    shown = await library.show("fofr/flux-black-light", TEAM)
    assert (shown.name, shown.trigger_words, shown.source) == ("black-light", ("black light",), "bundled")


async def test_an_unknown_name_is_refused_naming_the_known_ones(make: MakeLibrary) -> None:
    library = make()
    await add(library, "watercolour", 1)
    with pytest.raises(InvalidFieldError, match="there are watercolour") as caught:
        await library.resolve([LoraRef("watercolour"), LoraRef("nope", place="extra_lora")], TEAM)
    assert caught.value.problems[0].field == "extra_lora"


async def test_removing_takes_the_file_away_unless_another_entry_uses_it(make: MakeLibrary, folder: Path) -> None:
    library = make()
    await add(library, "one", 1)
    await add(library, "two", 1)
    await library.remove("one", TEAM)
    assert len(files_in(folder)) == 1
    await library.remove("two", TEAM)
    assert files_in(folder) == []
    with pytest.raises(NotFoundError):
        await library.remove("two", TEAM)


async def test_a_team_cannot_remove_what_is_public_or_anothers(make: MakeLibrary) -> None:
    library = make()
    await add(library, "shared", 1, owner="")
    await add(library, "theirs", 2, owner="team-2")
    for name in ("shared", "theirs"):
        with pytest.raises(NotFoundError):
            await library.remove(name, TEAM)
    with pytest.raises(NotFoundError):
        await library.show("theirs", TEAM)


async def test_a_taken_name_a_bad_name_and_a_full_library_are_refused(make: MakeLibrary, folder: Path) -> None:
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


async def test_a_lora_whose_file_is_gone_says_so(make: MakeLibrary, folder: Path) -> None:
    library = make()
    sha256 = await add(library, "style", 1)
    (folder / f"{sha256}.safetensors").unlink()
    with pytest.raises(AdapterError, match="add it again"):
        await resolve(library, "style")


async def test_a_file_of_this_machine_is_added_under_its_own_name_or_the_given_one(
    make: MakeLibrary, tmp_path: Path
) -> None:
    file = write_lora(tmp_path / "My Style.v2.safetensors", seed=1)
    library = make()
    added = await library.add_path(file, owner=PUBLIC, created_by="cli")
    named = await library.add_path(file, owner=TEAM, labels=Labels("Mine"), created_by="cli")
    assert (added.name, added.owner, added.source, added.created_by) == (
        "my-style.v2",
        "",
        "My Style.v2.safetensors",
        "cli",
    )
    assert (named.name, named.sha256) == ("mine", added.sha256)
    assert file.exists()
    assert await library.show(named.id, TEAM) == named


async def test_what_the_one_who_adds_says_goes_before_what_the_file_says(make: MakeLibrary) -> None:
    library, data = make(), lora_bytes(1, trigger_words="FILE")
    labels = Labels("own", trigger_words=("TOK", "in neon"), licence="cc0-1.0")
    own = await library.add_file(io.BytesIO(data), owner=TEAM, labels=labels, file_name="f", created_by="me")
    plain = await library.add_file(io.BytesIO(data), owner=TEAM, file_name="a/b/Plain One.safetensors", created_by="me")
    assert (own.trigger_words, own.licence) == (("TOK", "in neon"), "cc0-1.0")
    assert (plain.name, plain.trigger_words, plain.licence) == ("plain-one", ("FILE",), None)


async def test_a_team_lists_its_own_public_and_bundled_loras(make: MakeLibrary, tmp_path: Path) -> None:
    bundle(tmp_path / "bundled", "line", licence="cc0-1.0", trigger_words=["line art"])
    library = make()
    await add(library, "public", 1, owner=PUBLIC)
    await add(library, "own", 2)
    await add(library, "theirs", 3, owner="team-2")
    assert [lora.name for lora in await library.list(TEAM)] == ["own", "public", "line"]
    assert [lora.name for lora in await library.list()] == ["own", "public", "theirs", "line"]
    assert [lora.name for lora in await library.added()] == ["own", "public", "theirs"]
    shown = (await library.list(TEAM))[-1]
    assert (shown.id, shown.owner, shown.licence, shown.trigger_words) == ("line", PUBLIC, "cc0-1.0", ("line art",))


async def test_a_name_alone_is_no_place_to_fetch_from(make: MakeLibrary) -> None:
    with pytest.raises(InvalidFieldError, match="'style' is a name, not a place to fetch from") as caught:
        await make().add("style", owner=TEAM, created_by="me")
    assert caught.value.problems[0].field == "source"


async def test_a_taken_name_is_refused_before_the_download_and_the_file_of_one_taken_meanwhile_goes(
    make: MakeLibrary, site: TlsServer, folder: Path
) -> None:
    library = make()
    site.serve("/style.safetensors", lora_bytes(2))
    kept = await add(library, "style", 1)
    with pytest.raises(ConflictError):
        await library.add(site.url("/style.safetensors"), owner=TEAM, labels=Labels("style"), created_by="me")
    assert site.asked == []
    # without a name of its own, it is known only when it is here; then what was fetched serves its reference
    with pytest.raises(ConflictError):
        await library.add(site.url("/style.safetensors"), owner=TEAM, created_by="me")
    assert len(site.asked) == 1
    fetched = await resolve(library, site.url("/style.safetensors"))
    assert len(site.asked) == 1
    assert files_in(folder) == sorted(f"{sha}.safetensors" for sha in (kept, *fetched))


async def test_previews_are_kept_found_and_removed_with_their_lora(
    make: MakeLibrary, tmp_path: Path, folder: Path
) -> None:
    bundle(tmp_path / "bundled", "line")
    (tmp_path / "bundled" / "line.webp").write_bytes(b"line")
    library = make()
    await add(library, "style", 1)
    await add(library, "plain", 2)
    style, plain = await library.show("style", TEAM), await library.show("plain", TEAM)
    with pytest.raises(NotFoundError, match="'style' has no preview picture"):
        await library.find_preview("style", TEAM)
    await library.keep_preview(style, b"picture")
    assert (await library.find_preview("style", TEAM)).read_bytes() == b"picture"
    assert (await library.find_preview("line", TEAM)).read_bytes() == b"line"
    assert await library.list_previewed(await library.list(TEAM)) == {style.id, "line"}
    with pytest.raises(NotFoundError):
        await library.find_preview("style", "team-2")
    await library.remove("style", TEAM)
    assert files_in(folder.with_name("previews")) == []
    await library.keep_preview(style, b"too late")
    assert files_in(folder.with_name("previews")) == []
    assert files_in(folder) == sorted(
        [f"{plain.sha256}.safetensors", f"{(await library.show('line', TEAM)).sha256}.safetensors"]
    )


async def test_an_upload_is_inspected_and_kept_nowhere(make: MakeLibrary, folder: Path) -> None:
    report = await make().inspect(io.BytesIO(lora_bytes(1, rank=4)), TEAM)
    assert (report.problem, report.rank) == (None, 4)
    wrong = await make().inspect(io.BytesIO(b"no LoRA"), TEAM)
    assert wrong.problem
    assert files_in(folder) == []


async def test_a_file_that_is_no_lora_is_refused_and_nothing_stays(make: MakeLibrary, folder: Path) -> None:
    library = make()
    with pytest.raises(AdapterError):
        await library.add_file(io.BytesIO(b"no LoRA"), owner=TEAM, file_name="x.safetensors", created_by="me")
    assert files_in(folder) == []
    assert await library.added() == ()


async def test_the_field_of_a_wrong_lora_is_named(make: MakeLibrary) -> None:
    library = make()
    await add(library, "good", 1)
    for count, field in enumerate(["lora_weights", "extra_lora", "loras", "loras"]):
        refs = [LoraRef("good")] * count + [LoraRef("wrong name!", place=field)]
        with pytest.raises(InvalidFieldError) as caught:
            await library.resolve(refs, TEAM)
        assert caught.value.problems[0].field == field


@pytest.mark.parametrize(
    ("name", "kept"), [("My  Style", "my-style"), ("a.b_c-1", "a.b_c-1"), ("A" * 100, "a" * 100), (" x ", "x")]
)
def test_a_name_is_kept_in_lower_case_with_dashes(name: str, kept: str) -> None:
    assert check_name(name) == kept


@pytest.mark.parametrize("name", ["", " ", "-x", ".x", "a/b", "é", "a" * 101, "a\0b"])
def test_a_name_of_other_characters_is_refused(name: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_name(name)
    assert caught.value.problems[0].field == "name"
