"""The web pages: playground, gallery, LoRA library, account, documentation.

Templates, scripts and styles are served as they lie in the package; there is no build step.
"""

from collections.abc import Collection

from fastapi import FastAPI

from schnell.web.pages import (
    account,
    administration,
    documentation,
    gallery,
    gallery_actions,
    languages,
    loras,
    playground,
    sharing,
    static,
    training,
)
from schnell.web.pages.documents import find_documents, load_documents
from schnell.web.pages.languages import load_languages
from schnell.web.pages.site import Site, install_error_pages
from schnell.web.pages.static import load_static_files

__all__ = ["install", "install_error_pages", "prepare"]


def install(app: FastAPI, api_paths: Collection[str]) -> None:
    """Add the pages to `app`. They leave out what needs a path that is not among `api_paths`, those of its API."""
    app.state.site = Site(load_static_files(), load_documents(find_documents()), load_languages(), api_paths)
    for part in (
        static,
        playground,
        gallery,
        gallery_actions,
        sharing,
        loras,
        training,
        account,
        administration,
        documentation,
        languages,
    ):
        app.include_router(part.router, include_in_schema=False)


def prepare(app: FastAPI) -> None:
    """Make ready what takes its time once, before the first visitor comes."""
    site: Site = app.state.site
    site.prepare()
