"""The bars that src/schnell keeps, so that a reader finds a subject in a file, and a file in a folder."""

import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "schnell"
TESTS = ROOT / "tests"
MIGRATIONS = SOURCE / "database" / "migrations"
#: Where the tests of a package may be, by what they need: nothing, tensors, an app, the embedded model's recipe.
KINDS = ("unit", "engine", "api", "recipes")
#: Comments for tools say nothing to a reader.
FOR_TOOLS = re.compile(r"#\s*(noqa|type:|pragma|fmt)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def files() -> dict[str, str]:
    """The text of every Python file of the package, by its path in the repository."""
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def lines_of(text: str) -> int:
    return len(text.splitlines())


def functions_of(text: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function))


def length_of(function: Function) -> int:
    """From `def` to the last line: decorators are not counted."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def comments_of(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT and not FOR_TOOLS.match(token.string) for token in tokens)


def mirrors_of(package: Path) -> list[Path]:
    """The folders that may hold a package's tests. `tests/api` as a whole is that of `web`."""
    found = [TESTS / kind / package for kind in KINDS]
    return [*found, TESTS / "api" / package.relative_to("web")] if package.parts[0] == "web" else found


def functions() -> Iterator[tuple[int, str]]:
    """The length of every function, and where it is; Alembic's migrations are long lists by nature."""
    for path, text in files().items():
        if not (ROOT / path).is_relative_to(MIGRATIONS):
            yield from ((length_of(each), f"{path}:{each.lineno} {each.name}") for each in functions_of(text))


def listed(found: Iterable[tuple[int, str]]) -> str:
    return "\n".join(f"{count} {name}" for count, name in found)


def test_a_file_has_at_most_400_lines() -> None:
    long = [(size, path) for path, text in files().items() if (size := lines_of(text)) > 400]
    assert not long, f"files of more than 400 lines:\n{listed(long)}"


def test_a_function_has_at_most_60_lines() -> None:
    long = [(length, name) for length, name in functions() if length > 60]
    assert not long, f"functions of more than 60 lines:\n{listed(long)}"


def test_functions_are_short_as_a_rule() -> None:
    found = sorted(functions(), reverse=True)
    lengths = [length for length, _ in found]
    median, p90 = statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1]
    assert median <= 8, f"the median function has {median} lines; the longest:\n{listed(found[:10])}"
    assert p90 <= 25, f"a tenth of the functions have more than {p90} lines; the longest:\n{listed(found[:10])}"


def test_files_are_few_and_hold_a_whole_subject() -> None:
    sizes = sorted((lines_of(text), path) for path, text in files().items())
    median = statistics.median(size for size, _ in sizes)
    small = [(size, path) for size, path in sizes if size < 50]
    # 180 when the rooms were made; grows with what the service can do, file by file of a whole subject
    assert len(sizes) <= 350, f"{len(sizes)} files; the small ones:\n{listed(small)}"
    assert len(small) <= len(sizes) / 6, f"{len(small)} files have fewer than 50 lines:\n{listed(small)}"
    assert median >= 110, f"the median of {len(sizes)} files has {median} lines; the small ones:\n{listed(small)}"


@pytest.mark.parametrize("folder", ["engine", "serving", "generations", "database"])
def test_comments_say_why_where_a_reader_would_stop(folder: str) -> None:
    """At least 1.5 comments in 100 lines. Whether they are good is for people to say."""
    texts = {path: text for path, text in files().items() if (ROOT / path).is_relative_to(SOURCE / folder)}
    comments, lines = sum(map(comments_of, texts.values())), sum(map(lines_of, texts.values()))
    without = "\n".join(path for path, text in texts.items() if not comments_of(text))
    assert 100 * comments / lines >= 1.5, f"{comments} comments in {lines} lines of {folder}/; without any:\n{without}"


def test_a_packages_tests_are_where_its_name_says() -> None:
    packages = {
        Path(path).parent.relative_to("src/schnell")
        for path, text in files().items()
        if not (ROOT / path).is_relative_to(MIGRATIONS) and any(functions_of(text))
    }
    without = sorted(
        f"src/schnell/{package}: none of {', '.join(str(folder.relative_to(ROOT)) for folder in mirrors_of(package))}"
        for package in packages - {Path()}
        if not any(any(folder.rglob("test_*.py")) for folder in mirrors_of(package))
    )
    assert not without, "packages without a folder of tests:\n" + "\n".join(without)
