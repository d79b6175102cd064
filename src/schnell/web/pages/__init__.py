"""What a person sees: playground, gallery, account, documentation. Templates and vendored scripts, no build step."""

from collections.abc import Collection

from fastapi import FastAPI

from schnell.web.pages import account, documentation, gallery, loras, playground, static
from schnell.web.pages.documents import find_documents, load_documents
from schnell.web.pages.site import Site, install_error_pages
from schnell.web.pages.static import load_static_files

__all__ = ["install", "install_error_pages"]


def install(app: FastAPI, api_paths: Collection[str]) -> None:
    """Put the pages on `app`. They show only what `api_paths`, the paths of its API, can do."""
    app.state.site = Site(load_static_files(), load_documents(find_documents()), api_paths)
    for part in (static, playground, gallery, loras, account, documentation):
        app.include_router(part.router, include_in_schema=False)
