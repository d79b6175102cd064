"""Tables of the documentation that are made from the OpenAPI schemas, so that both always say the same."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI

from schnell.spec import ASPECT_RATIOS, CUSTOM_RATIO, Size
from schnell.web.native.feature_schema import AI_RECORD, FEATURE_BODY, MODEL_IDS

_CONTENT: Final = FEATURE_BODY["requestBody"]["content"]["application/json"]
_BODY: Final = _CONTENT["schema"]
_EXAMPLE: Final = _CONTENT["examples"]["the document's own"]["value"]
_RATIO_USES: Final = {
    "1:1": "Square images, social media posts",
    "16:9": "Widescreen, video thumbnails",
    "9:16": "Vertical video, mobile screens",
    "3:2": "Standard photography",
    "2:3": "Portrait photography",
    "4:5": "Instagram posts",
    "5:4": "Landscape photography",
}


def generate_tables(app: FastAPI) -> dict[str, str]:
    """Every generated part as Markdown, by the name that pages call it by (`<!-- generated: NAME -->`)."""
    makers: Mapping[str, Callable[[], str]] = {
        "parameters": _parameters,
        "prompt-object": _prompt_object,
        "aspect-ratios": _aspect_ratios,
        "models": lambda: _list(f"`{model}`" for model in MODEL_IDS),
        "example": _example,
        "record": _record,
        "routes": lambda: _routes(app),
    }
    return {name: make() for name, make in makers.items()}


def _parameters() -> str:
    rows = ((name, schema) for name, schema in _BODY["properties"].items())
    return _fields(rows, _BODY["required"])


def _prompt_object() -> str:
    schema = _BODY["properties"]["promptObject"]
    return _fields(schema["properties"].items(), schema["required"])


def _fields(rows: Iterable[tuple[str, Mapping[str, Any]]], required: Sequence[str]) -> str:
    return _table(
        ("Parameter", "Type", "Required", "Default", "Range", "Description"),
        (
            (
                f"`{name}`",
                _type(schema),
                "Yes" if name in required else "No",
                _default(name, schema),
                _range(name, schema),
                schema.get("description", ""),
            )
            for name, schema in rows
        ),
    )


def _type(schema: Mapping[str, Any]) -> str:
    if "const" in schema or "enum" in schema:
        return "string"
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return str(next(kind for kind in kinds if kind != "null"))


def _range(name: str, schema: Mapping[str, Any]) -> str:
    if name == "model":
        return "one of [these](#models)"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if isinstance(value, str))
    if "maximum" in schema:
        step = f", multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
        return f"{schema['minimum']}–{schema['maximum']}{step}"
    return f"≤ {schema['maxLength']:,} characters" if "maxLength" in schema else ""


def _default(name: str, schema: Mapping[str, Any]) -> str:
    if name == "seed":
        return "random"
    value = schema.get("default")
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _aspect_ratios() -> str:
    rows = [
        (f"`{ratio}`", _pixels(size), _pixels(Size(size.width // 2, size.height // 2)), _RATIO_USES.get(ratio, ""))
        for ratio, size in ASPECT_RATIOS.items()
    ]
    rows.append((f"`{CUSTOM_RATIO}`", "`width` × `height`", "`width` × `height`", "Use specific width/height values"))
    return _table(("Ratio", "1 megapixel", "0.25 megapixel", "Use case"), rows)


def _pixels(size: Size) -> str:
    return f"{size.width} × {size.height}"


def _example() -> str:
    """The reference document's cURL, with its body unindented as it is there."""
    body = "\n".join(line.lstrip() for line in json.dumps(_EXAMPLE, indent=1).splitlines())
    return f"""```sh
curl --location 'http://127.0.0.1:8000/api/features' \\
--header 'API-KEY: <api-key>' \\
--header 'Content-Type: application/json' \\
--data '{body}'
```"""


def _record() -> str:
    lines = ["aiRecord", *_tree(AI_RECORD, "  ")]
    return "```\n" + "\n".join(lines) + "\n```"


def _tree(schema: Mapping[str, Any], indent: str) -> Iterable[str]:
    for name, part in schema["properties"].items():
        inner = next((each for each in part.get("anyOf", [part]) if "properties" in each), None)
        yield f"{indent}{name:<{max(1, 26 - len(indent))}} {'object' if inner else _kinds(part)}"
        if inner:
            yield from _tree(inner, indent + "  ")


def _kinds(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " | ".join(f"array of {schema['items']['type']}" if kind == "array" else kind for kind in kinds)


def _routes(app: FastAPI) -> str:
    paths = app.openapi()["paths"].items()
    return _table(
        ("Method", "Path", "What it does"),
        (
            (f"`{method.upper()}`", f"`{path}`", operation.get("summary", ""))
            for path, methods in paths
            for method, operation in methods.items()
        ),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
