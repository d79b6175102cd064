"""The OpenAPI description of the LoRA library's bodies and answers, and the limits of its labels."""

from typing import Any, Final

from schnell.loras.references import MAX_REFERENCE_LENGTH
from schnell.web.openapi import INTEGER, INTEGER_OR_NULL, TEXT, TEXT_OR_NULL, TEXTS, example_of, json_answer, object_of

_Answer = dict[int | str, dict[str, Any]]
_COUNTS_OR_NULL: Final = {"type": ["object", "null"], "additionalProperties": INTEGER}

_NAME: Final = {
    "type": ["string", "null"],
    "pattern": "^[a-z0-9][a-z0-9._-]{0,99}$",
    "description": "Its name in the library; made from the source if absent.",
}
_SOURCE: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_REFERENCE_LENGTH,
    "pattern": "^[!-~]+$",
    "description": "Where to fetch from: owner/name, or a URL.",
}
MAX_TRIGGER_WORDS: Final = 16
#: Characters of a licence's name or of a trigger word.
MAX_LABEL_LENGTH: Final = 200
_LABEL: Final = {"type": "string", "maxLength": MAX_LABEL_LENGTH, "pattern": r"^[^\x00-\x1f\x7f]*$"}
_LICENCE: Final = _LABEL | {"description": "In place of the one that the file or its site names."}
_WORDS: Final = "Words that wake it, in place of those that the file or its site names."
_PUBLIC: Final = "Whether every team is to see it; needs the scope operator."
_JSON_FIELDS: Final = {
    "source": _SOURCE,
    "name": _NAME,
    "licence": _LICENCE | {"type": ["string", "null"]},
    "triggerWords": {
        "type": ["array", "null"],
        "maxItems": MAX_TRIGGER_WORDS,
        "items": _LABEL | {"minLength": 1},
        "description": _WORDS,
    },
    "public": {"type": ["boolean", "null"], "description": _PUBLIC},
}
_FILE: Final = {"type": "string", "format": "binary", "description": "The LoRA file (.safetensors)."}
_FORM_FIELDS: Final = {
    "file": _FILE,
    "name": _NAME | {"type": "string"},
    "licence": _LICENCE,
    "triggerWords": {"type": "string", "description": f"{_WORDS} Separated by commas."},
    "public": {"type": "string", "enum": ["true", "false"], "description": _PUBLIC},
}
ADD_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": example_of(
                    object_of(_JSON_FIELDS, "source"),
                    {"source": "fofr/flux-black-light", "name": "black-light", "triggerWords": ["black light"]},
                )
            },
            "multipart/form-data": {"schema": object_of(_FORM_FIELDS, "file")},
        },
    }
}
INSPECT_BODY: Final[dict[str, Any]] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": object_of({"file": _FILE})}}}
}

_LORA: Final = object_of(
    dict.fromkeys(("id", "name", "source", "sha256", "layout", "madeFor", "createdBy", "createdAt"), TEXT)
    | {"rank": INTEGER, "width": INTEGER_OR_NULL, "bytes": INTEGER, "licence": TEXT_OR_NULL}
    | {"triggerWords": TEXTS, "baseModel": TEXTS, "warnings": TEXTS, "public": {"type": "boolean"}}
)
_EXAMPLE_LORA: Final = {
    "id": "black-light",
    "name": "black-light",
    "source": "bundled",
    "sha256": "e00a75ebf92f32863219f14ccdf5d893012196f61504dd8507cd1b3704f6b96f",
    "layout": "diffusers LoRA",
    "madeFor": "a FLUX.1 model of width 256",
    "rank": 8,
    "width": 256,
    "bytes": 907_920,
    "triggerWords": ["black light"],
    "baseModel": ["schnell-mini"],
    "licence": "Apache-2.0",
    "warnings": [],
    "createdBy": "schnell",
    "createdAt": "2026-11-25T13:48:29.323757Z",
    "public": True,
}
_REPORT: Final = object_of(
    {"bytes": INTEGER, "sha256": TEXT_OR_NULL, "layout": TEXT_OR_NULL, "madeFor": TEXT_OR_NULL}
    | {"keys": INTEGER, "matchedKeys": INTEGER, "modules": _COUNTS_OR_NULL, "forms": _COUNTS_OR_NULL}
    | {"rank": INTEGER_OR_NULL, "alpha": {"type": ["number", "null"]}, "width": INTEGER_OR_NULL}
    | {"triggerWords": TEXTS, "baseModel": TEXTS, "licence": TEXT_OR_NULL, "warnings": TEXTS}
    | {"problem": TEXT_OR_NULL}
)
_EXAMPLE_REPORT: Final = {
    "bytes": 907_920,
    "sha256": "e00a75ebf92f32863219f14ccdf5d893012196f61504dd8507cd1b3704f6b96f",
    "layout": "diffusers LoRA",
    "madeFor": "a FLUX.1 model of width 256",
    "keys": 228,
    "matchedKeys": 228,
    "modules": {"transformer": 114},
    "forms": {"LoRA": 114},
    "rank": 8,
    "alpha": 8.0,
    "width": 256,
    "triggerWords": ["black light"],
    "baseModel": ["schnell-mini"],
    "licence": "Apache-2.0",
    "warnings": [],
    "problem": None,
}
LIST_ANSWER: Final[_Answer] = {
    200: json_answer(
        "The LoRAs",
        example_of(
            object_of({"loras": {"type": "array", "items": _LORA}, "total": INTEGER}),
            {"loras": [_EXAMPLE_LORA], "total": 1},
        ),
    )
}
_ONE: Final = example_of(object_of({"lora": _LORA}), {"lora": _EXAMPLE_LORA})
LORA_ANSWER: Final[_Answer] = {200: json_answer("The LoRA", _ONE)}
MADE_ANSWER: Final[_Answer] = {201: json_answer("The LoRA, now in the library", _ONE)}
REPORT_ANSWER: Final[_Answer] = {
    200: json_answer("What the file is", example_of(object_of({"report": _REPORT}), {"report": _EXAMPLE_REPORT}))
}
PREVIEW_ANSWER: Final[_Answer] = {
    200: {
        "description": "The picture",
        "content": {"image/webp": {"schema": {"type": "string", "contentMediaType": "image/webp"}}},
    }
}
SITES_ANSWER: Final[_Answer] = {
    200: json_answer(
        "The sites",
        example_of(
            object_of(
                {"sites": {"type": "array", "items": object_of({"site": TEXT, "hasToken": {"type": "boolean"}})}}
            ),
            {"sites": [{"site": "huggingface", "hasToken": True}, {"site": "civitai", "hasToken": False}]},
        ),
    )
}
