from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from schnell.web.openapi import (
    INTEGER,
    TEXT,
    allowed_methods,
    error_answers,
    example_of,
    json_answer,
    object_of,
    remove_unsent_statuses,
)


class Body(BaseModel):
    size: int


def build_app() -> FastAPI:
    app = FastAPI()

    @app.get("/things/{name}")
    def show(name: str) -> str:
        return name

    @app.delete("/things/{name}")
    def remove(name: str) -> str:
        return name

    @app.post("/things/inspect")
    def inspect(body: Body) -> int:
        return body.size

    @app.put("/hidden", include_in_schema=False)
    def hide() -> None:
        return

    return app


def test_an_objects_properties_are_required_unless_some_are_named() -> None:
    properties = {"a": TEXT, "b": INTEGER}
    assert object_of(properties) == {"type": "object", "properties": properties, "required": ["a", "b"]}
    assert object_of(properties, "b")["required"] == ["b"]


def test_an_example_leaves_the_schema_itself_alone() -> None:
    assert example_of(TEXT, "x") == {"type": "string", "examples": ["x"]}
    assert TEXT == {"type": "string"}


def test_error_answers_show_the_errors_shape_for_each_status() -> None:
    answers = error_answers(400, 404)
    assert list(answers) == [400, 404]
    for answer in answers.values():
        schema = answer["content"]["application/json"]["schema"]
        assert schema["required"] == ["errorCode", "message"]
        assert answer == json_answer(answer["description"], schema)
    with pytest.raises(KeyError):
        error_answers(418)


def test_the_status_that_is_never_sent_leaves_the_document() -> None:
    plain, app = build_app(), build_app()
    remove_unsent_statuses(app)
    before, after = plain.openapi(), app.openapi()
    operation = before["paths"]["/things/inspect"]["post"]["responses"]
    assert set(operation) == {"200", "422"}
    assert after["paths"]["/things/inspect"]["post"]["responses"] == {"200": operation["200"]}
    assert set(after["components"]["schemas"]) == {"Body"}


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/things/red", {"GET", "HEAD", "DELETE"}),
        ("/things/inspect", {"POST"}),
        ("/things/a/b", set()),
        ("/hidden", set()),
        ("/", set()),
    ],
)
def test_allowed_methods_are_those_of_the_closest_documented_path(path: str, methods: set[str]) -> None:
    app: Any = build_app()
    assert allowed_methods(app, path) == methods
