"""Which models are served."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from schnell.generations import FEATURE
from schnell.web.services import services_of

router = APIRouter(tags=["generation"])


@router.get("/models", summary="Served models")
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
