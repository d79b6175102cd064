"""`/v1/models` belongs to OpenAI's and to Replicate's clients alike: one body that both can read."""

from typing import Any, Final

from fastapi import APIRouter, Request

from schnell.errors import (NotFoundError, SchnellError)
from schnell.web.auth import Reader
from schnell.web.dialects.openai_shapes import openai_error
from schnell.web.dialects.replicate_schema import (describe_version, replicate_error, version_id)
from schnell.web.dialects.translation import find_model
from schnell.web.services import (Services, services_of)

router = APIRouter(tags=["OpenAI"], include_in_schema=False)
#: When FLUX.1 [schnell] was published; the clients want a moment for every model.
_CREATED: Final = 1722470400
_CREATED_AT: Final = "2024-08-01T00:00:00.000Z"


def model_list_error(error: SchnellError, status: int) -> dict[str, Any]:
    """The error shapes of both."""
    return openai_error(error, status) | replicate_error(error, status)


@router.get("/v1/models")
async def list_models(request: Request, caller: Reader) -> dict[str, Any]:  # noqa: ARG001 - a key is asked for
    """Every model id that requests may name."""
    services = services_of(request)
    models = [_describe(services, name) for name in services.model.ids]
    return {"object": "list", "data": models, "results": models, "next": None, "previous": None}


@router.get("/v1/models/{owner}/{name}/versions")
async def list_versions(request: Request, caller: Reader, owner: str, name: str) -> dict[str, Any]:  # noqa: ARG001
    """The one version of a model."""
    find_model(request, f"{owner}/{name}")
    results = [describe_version(services_of(request), _CREATED_AT)]
    return {"results": results, "next": None, "previous": None}


@router.get("/v1/models/{owner}/{name}/versions/{version}")
async def show_version(request: Request, caller: Reader, owner: str, name: str, version: str) -> dict[str, Any]:  # noqa: ARG001
    """A version, with the schema of its input."""
    find_model(request, f"{owner}/{name}")
    if version != version_id(services_of(request)):
        raise NotFoundError("this version does not exist here")
    return describe_version(services_of(request), _CREATED_AT)


@router.get("/v1/models/{model:path}")
async def show_model(request: Request, caller: Reader, model: str) -> dict[str, Any]:  # noqa: ARG001 - as above
    """A model, with what either client wants to know."""
    return _describe(services_of(request), find_model(request, model))


def _describe(services: Services, model: str) -> dict[str, Any]:
    owner, _, name = model.rpartition("/")
    owner = owner or "schnell"
    return {
        "id": model,
        "object": "model",
        "created": _CREATED,
        "owned_by": owner,
        "url": f"{services.config.public_url}/v1/models/{model}",
        "owner": owner,
        "name": name,
        "description": f"FLUX.1 [schnell] with LoRAs; this server draws with {services.model.label}",
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": describe_version(services, _CREATED_AT),
    }
