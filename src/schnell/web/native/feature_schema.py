"""The OpenAPI description of `POST /api/features`, and of the records that most of the native API answers with.

The body is described by hand because it is read by hand, in `native.features`. The documentation's tables and the
playground's defaults are made from this description.
"""

from typing import Any, Final

from schnell.spec import (
    ASPECT_RATIOS,
    CUSTOM_RATIO,
    DEFAULT_LORA_SCALE,
    DEFAULT_SIDE,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_OUTPUTS,
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    SIDE_STEP,
)
from schnell.web.openapi import INTEGER, TEXT, TEXT_OR_NULL, TEXTS, error_answers, example_of, json_answer, object_of

#: Every id under which the served model may be named; the first is the reference document's.
MODEL_IDS: Final = (
    "black-forest-labs/flux-schnell-lora",
    "black-forest-labs/flux-schnell",
    "flux-schnell-lora",
    "flux-schnell",
    "black-forest-labs/FLUX.1-schnell",
    "FLUX.1-schnell",
)


def _nullable(kind: str, description: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": description, **more}


def _choice(description: str, *values: Any, default: Any) -> dict[str, Any]:
    return {"enum": [*values, None], "description": description, "default": default}


def _whole(description: str, low: int, high: int, **more: Any) -> dict[str, Any]:
    return _nullable("integer", description, minimum=low, maximum=high, **more)


_SIDE: Final = {
    "type": "integer",
    "minimum": MIN_SIDE,
    "maximum": MAX_SIDE,
    "multipleOf": SIDE_STEP,
}
_SCALE: Final = {"minimum": 0, "maximum": MAX_LORA_SCALE, "default": DEFAULT_LORA_SCALE}
_LORAS: Final = {
    "type": ["array", "null"],
    "maxItems": MAX_LORAS,
    "description": f"LoRAs, up to {MAX_LORAS} together with those above: each with path or name, and scale.",
    "items": {
        "anyOf": [
            TEXT,
            *(
                {
                    "type": "object",
                    "required": [name],
                    "properties": {name: TEXT, "scale": {"type": ["number", "null"], **_SCALE}},
                    "additionalProperties": False,
                }
                for name in ("path", "name")
            ),
        ]
    },
    "examples": [[{"path": "fofr/flux-black-light", "scale": 0.8}, {"name": "pixel", "scale": 0.5}]],
}
_PROMPT_OBJECT: Final = {
    "type": "object",
    "required": ["prompt"],
    "description": "What to draw. Keys that are not listed here are ignored.",
    "properties": {
        "prompt": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_PROMPT_LENGTH,
            "pattern": r"^[^\x00]*[^\s\x00][^\x00]*$",
            "description": "Text description of the image to generate.",
        },
        "aspect_ratio": _choice("The picture's shape.", *ASPECT_RATIOS, CUSTOM_RATIO, default="1:1"),
        "width": _SIDE | {"description": f"Pixels, with aspect_ratio custom; {DEFAULT_SIDE} if absent."},
        "height": _SIDE | {"description": f"Pixels, with aspect_ratio custom; {DEFAULT_SIDE} if absent."},
        "num_inference_steps": _whole("Denoising steps.", 1, 4, default=4),
        "seed": _whole("The same seed gives the same picture; random if absent.", 0, MAX_SEED),
        "output_quality": _whole("Compression quality.", 0, 100, default=80),
        "disable_safety_checker": _nullable("boolean", "Switch the safety check off.", default=False),
        "disable_watermark": _nullable(
            "boolean", "Leave the invisible mark out; a team must be allowed to.", default=False
        ),
        "hide_prompt": _nullable("boolean", "Leave the prompt out of the signed credentials.", default=False),
        "go_fast": _nullable("boolean", "Faster arithmetic where the processor has it.", default=True),
        "lora_weights": _nullable("string", "A LoRA: owner/name, a URL, or a name from your library."),
        "lora_scale": _nullable("number", "How strongly the LoRA acts.", **_SCALE),
        "extra_lora": _nullable("string", "A second LoRA."),
        "extra_lora_scale": _nullable("number", "How strongly it acts.", **_SCALE),
        "loras": _LORAS,
        "megapixels": _choice("Resolution in megapixels.", "0.25", "1", 0.25, 1, default="1"),
        "num_outputs": _whole("How many pictures.", 1, MAX_OUTPUTS, default=1),
        "output_format": _choice("The file's format.", "webp", "jpg", "jpeg", "png", default="webp"),
    },
    "if": {"required": ["aspect_ratio"], "properties": {"aspect_ratio": {"const": CUSTOM_RATIO}}},
    "else": {"dependentRequired": {"width": ["height"], "height": ["width"]}},
}
_EXAMPLE: Final = {
    "type": "IMAGE_GENERATOR",
    "model": "black-forest-labs/flux-schnell-lora",
    "promptObject": {
        "prompt": "Futuristic cityscape at night, neon lights, cyberpunk style",
        "aspect_ratio": "1:1",
        "num_inference_steps": 4,
        "go_fast": True,
        "lora_weights": "fofr/flux-black-light",
        "lora_scale": 0.8,
        "megapixels": "1",
    },
}
_BODY: Final = {
    "type": "object",
    "required": ["type", "model", "promptObject"],
    "properties": {
        "type": {"const": "IMAGE_GENERATOR", "description": "The feature."},
        "model": {
            "enum": list(MODEL_IDS),
            "description": "The model; all names stand for the one that is served. A LoRA may follow after a colon: "
            "flux-schnell-lora:black-light@0.8.",
        },
        "promptObject": _PROMPT_OBJECT,
        "conversationId": _nullable("string", "Kept with the record.", pattern=r"^[^\x00]*$"),
        "async": _nullable("boolean", "Answer at once; ask /api/results/{uuid} later.", default=False),
        "webhook": _nullable("string", "An https address that is sent the record when it has ended. Needs `async`."),
        "webhookEvents": {
            "type": ["array", "null"],
            "items": {"enum": ["start", "output", "logs", "completed"]},
            "description": "What the webhook is told of; the end alone if absent.",
        },
        "dryRun": _nullable("boolean", "Only say what it would cost, and how long it would take.", default=False),
    },
}
#: The fields of the body; what to draw is in `promptObject`.
BODY_FIELDS: Final = tuple(_BODY["properties"])
FEATURE_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _BODY, "examples": {"the document's own": {"value": _EXAMPLE}}}},
    },
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "A repeated request with the same key and body is one generation and one charge, for a day.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        }
    ],
}
_KEY: Final = "development/images/2026_11_25_15_09_24_339_000001.webp"
_LINK: Final = f"https://pictures.example/files/{_KEY}?expires=1796223600&signature={'0123456789abcdef' * 4}"
_EXAMPLE_RECORD: Final = {
    "uuid": "0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11",
    "userId": "5f0f4a8e-53d4-4c27-8a4f-0f5d8b1d7a20",
    "teamId": "8a1f6f3c-1b5d-4b6e-9a70-6f0b7a5c9d33",
    "teamUser": {
        "teamId": "8a1f6f3c-1b5d-4b6e-9a70-6f0b7a5c9d33",
        "userId": "5f0f4a8e-53d4-4c27-8a4f-0f5d8b1d7a20",
        "userName": "Administrator",
        "userAvatar": None,
        "status": "ACTIVE",
        "role": "ADMIN",
        "creditLimit": 100_000_000,
        "usedCredit": 1000,
        "createdAt": "2026-11-25T15:00:00.000Z",
        "createdBy": "SYSTEM",
        "updatedAt": "2026-11-25T15:00:00.000Z",
        "updatedBy": "SYSTEM",
    },
    "model": "black-forest-labs/flux-schnell-lora",
    "type": "IMAGE_GENERATOR",
    "metadata": None,
    "rating": None,
    "feedback": None,
    "conversationId": None,
    "status": "SUCCESS",
    "createdAt": "2026-11-25T15:09:24.339Z",
    "aiRecordDetail": {
        "promptObject": {"prompt": "a red apple on a blue background", "megapixels": "1"},
        "resultObject": [_KEY],
        "responseObject": {
            "seed": 7,
            "seeds": [7],
            "width": 1024,
            "height": 1024,
            "temporaryUrls": [_LINK],
            "timings": {"text": 0.01, "noise": 0.001, "denoise": 0.25, "decode": 0.1, "safety": 0.03, "encode": 0.03},
            "loras": [],
            "warnings": [],
            "flagged": [],
            "proof": [{"mark": "71783b1c61", "credentials": "urn:c2pa:4769380b-654a-4d99-903f-ad32ab037e50"}],
        },
    },
    "additionalData": None,
    "temporaryUrl": _LINK,
}
_TEAM_USER: Final = object_of(
    dict.fromkeys(("teamId", "userId", "userName"), TEXT)
    | {"userAvatar": TEXT_OR_NULL, "status": {"enum": ["ACTIVE", "INACTIVE"]}, "role": {"enum": ["ADMIN", "MEMBER"]}}
    | {"creditLimit": INTEGER, "usedCredit": INTEGER}
    | dict.fromkeys(("createdAt", "createdBy", "updatedAt", "updatedBy"), TEXT)
)
AI_RECORD: Final = object_of(
    dict.fromkeys(("uuid", "userId", "teamId"), TEXT)
    | {"teamUser": {"anyOf": [_TEAM_USER, {"type": "null"}]}, "model": TEXT, "type": TEXT}
    | {"metadata": {"type": ["object", "null"]}, "rating": {"type": ["integer", "null"]}, "feedback": TEXT_OR_NULL}
    | {"conversationId": TEXT_OR_NULL, "status": {"enum": ["PROCESSING", "SUCCESS", "FAILURE"]}, "createdAt": TEXT}
    | {
        "aiRecordDetail": object_of(
            {
                "promptObject": {"type": "object"},
                "resultObject": {"type": "array", "items": TEXT},
                "responseObject": {"type": "object"},
            }
        ),
        "additionalData": {"type": "null"},
        "temporaryUrl": TEXT_OR_NULL,
    }
)
_QUOTE: Final = object_of(
    dict.fromkeys(("cost", "width", "height", "numOutputs", "queuePosition"), INTEGER)
    | {"expectedSeconds": {"type": "number"}, "warnings": TEXTS}
)
_EXAMPLE_QUOTE: Final = {
    "cost": 1000,
    "width": 1024,
    "height": 1024,
    "numOutputs": 1,
    "queuePosition": 0,
    "expectedSeconds": 0.412,
    "warnings": [],
}
_FEATURE_ANSWER: Final[dict[str, Any]] = {
    "description": "The record; with isStreaming the events download, queued, step, done and error",
    "content": {
        "application/json": {
            "schema": {"anyOf": [object_of({"aiRecord": AI_RECORD}), object_of({"dryRun": _QUOTE})]},
            "examples": {
                "a picture": {"value": {"aiRecord": _EXAMPLE_RECORD}},
                "dryRun": {"value": {"dryRun": _EXAMPLE_QUOTE}},
            },
        },
        "text/event-stream": {
            "schema": object_of({"event": {"enum": ["download", "queued", "step", "done", "error"]}, "data": TEXT}),
            "examples": {"a step": {"value": 'event: step\ndata: {"stage": "denoise", "step": 1, "total": 4}\n\n'}},
        },
    },
}
FEATURE_RESPONSES: Final = error_answers(400, 401, 402, 403, 409, 413, 429, 500, 503) | {200: _FEATURE_ANSWER}
RECORD_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: json_answer("The record", example_of(object_of({"aiRecord": AI_RECORD}), {"aiRecord": _EXAMPLE_RECORD}))
}
RECORD_PAGE_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: json_answer(
        "Records, and the cursor of the next page",
        example_of(
            object_of({"aiRecords": {"type": "array", "items": AI_RECORD}, "nextCursor": TEXT_OR_NULL}),
            {
                "aiRecords": [_EXAMPLE_RECORD],
                "nextCursor": "1795619364339.0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11",
            },
        ),
    )
}
