"""`GET /models`: the ids under which the served model may be named."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request

from schnell.generations import FEATURE
from schnell.web.openapi import TEXT, TEXTS, example_of, json_answer, object_of
from schnell.web.services import services_of

router = APIRouter(tags=["generation"])
_MODEL: Final = object_of(
    dict.fromkeys(("uuid", "modelId", "name", "group", "provider", "status"), TEXT)
    | {"features": TEXTS, "modality": object_of({"INPUT": TEXTS, "OUTPUT": TEXTS})}
)
_EXAMPLE: Final = {
    "uuid": "black-forest-labs/flux-schnell-lora",
    "modelId": "black-forest-labs/flux-schnell-lora",
    "name": "schnell-mini",
    "group": "IMAGE",
    "provider": "black-forest-labs",
    "status": "ACTIVE",
    "features": ["IMAGE_GENERATOR"],
    "modality": {"INPUT": ["text"], "OUTPUT": ["image"]},
}
_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: json_answer(
        "The models",
        example_of(
            object_of({"models": {"type": "array", "items": _MODEL}, "total": {"type": "integer"}}),
            {"models": [_EXAMPLE], "total": 1},
        ),
    )
}


@router.get("/models", summary="Served models", responses=_ANSWER)
async def list_models(
    request: Request, feature: Annotated[str | None, Query(description="Only models of this feature.")] = None
) -> dict[str, Any]:
    """Every model id that requests may name. All stand for the one model that this server runs."""
    model = services_of(request).model
    if feature not in {None, FEATURE}:
        return {"models": [], "total": 0}
    models = [
        {
            "uuid": model_id,
            "modelId": model_id,
            "name": model.name,
            "group": "IMAGE",
            "provider": model_id.partition("/")[0] if "/" in model_id else "schnell",
            "status": "ACTIVE",
            "features": [FEATURE],
            "modality": {"INPUT": ["text"], "OUTPUT": ["image"]},
        }
        for model_id in model.ids
    ]
    return {"models": models, "total": len(models)}
