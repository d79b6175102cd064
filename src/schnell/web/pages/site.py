"""What all pages share: templates, response headers, the signed-in caller, and errors as pages."""

import gzip
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, cast
from urllib.parse import urlencode, urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from jinja2 import BytecodeCache, Environment, PackageLoader, StrictUndefined, pass_context, select_autoescape
from jinja2.bccache import Bucket
from jinja2.runtime import Context
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from schnell.accounts.identity import Caller
from schnell.errors import ForbiddenError, SchnellError, UnauthorizedError
from schnell.web.auth import identify
from schnell.web.errors import as_field_error
from schnell.web.pages.documents import Document
from schnell.web.pages.languages import Language, Languages, ScriptTexts, language_of, mark, scripts_of
from schnell.web.pages.static import InlineFile, StaticFiles
from schnell.web.services import services_of

_SAMPLE_KEY: Final = "sample/images/2000_01_01_00_00_00_000_000000.png"
#: Files that stand in pages, and not only beside them.
_INLINE: Final = ("app.css", "start.js", "forms.js")
#: The templates of the first page that a newcomer sees, signed in or not.
_SEEN_FIRST: Final = ("base.html", "playground.html", "add_lora.html", "sign_in.html")
_LEAST_COMPRESSED: Final = 1024
#: The cookie with the theme that a visitor has chosen, written by the pages' script.
_THEME_COOKIE: Final = "schnell_theme"
_THEMES: Final = {"light", "dark"}


class Site:
    """The templates, static files and documents of the pages, kept in `app.state.site`."""

    def __init__(
        self,
        static: StaticFiles,
        documents: Mapping[str, Document],
        languages: Languages,
        api_paths: Collection[str],
    ) -> None:
        self.static = static
        self.documents = documents
        self.languages = languages
        self._api_paths = api_paths
        self.inline = {name: static.inline(name) for name in _INLINE}
        self._scripts = {name: file.data.decode() for name, file in static.files.items() if name.endswith(".js")}
        # a template's code is the same in every language
        compiled = _CompiledTemplates()
        self._templates = {language: _environment(static, self.inline, language, compiled) for language in languages}
        self._script_texts: dict[tuple[Language, str], ScriptTexts] = {}

    def serves(self, path: str) -> bool:
        """Whether the app's API has this path. Parts of pages that need one that it lacks are left out."""
        return path in self._api_paths

    def prepare(self) -> None:
        """Compile what the first visitor sees first, who would wait for it otherwise."""
        for environment in self._templates.values():
            for name in _SEEN_FIRST:
                environment.get_template(name)

    def render(self, language: Language, template: str, context: Mapping[str, Any]) -> str:
        """The text of a template. A name that the context lacks is an error."""
        return self._templates[language].get_template(template).render(context)

    def script_texts(self, language: Language, template: str) -> ScriptTexts:
        """What the scripts of a template's pages say, in another language than English; English stands in them."""
        found = self._script_texts.get((language, template))
        if found is None:
            environment = self._templates[language]
            names = scripts_of(template, lambda name: _source(environment, name), self._scripts)
            found = {text: shown for name in names for text, shown in language.scripts.get(name, {}).items()}
            self._script_texts[language, template] = found
        return found


class _CompiledTemplates(BytecodeCache):
    """Templates' code in memory. It is the same in every language, so that none is compiled twice."""

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if (code := self._code.get(bucket.key)) is not None:
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._code[bucket.key] = bucket.bytecode_to_string()


def _environment(
    static: StaticFiles, inline: Mapping[str, InlineFile], language: Language, compiled: BytecodeCache
) -> Environment:
    """The templates in one language. `inline` are the files that a page may hold."""
    made = Environment(
        loader=PackageLoader("schnell.web.pages"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
        bytecode_cache=compiled,
    )
    # new style: what is put into a text is escaped, the text itself is the catalogue's and may hold HTML
    made.install_gettext_translations(language.texts, newstyle=True)  # type: ignore[attr-defined]
    made.globals["static"] = static.url
    made.globals["inline"] = {name: file.text for name, file in inline.items()}
    own: dict[str, Callable[..., str]] = {
        "thousands": language.number,
        "filesize": language.size,
        "ago": language.ago,
        "named": language.named,
    }
    made.filters |= {name: _when_shown(write) for name, write in own.items()}
    return made


def _when_shown(write: Callable[..., str]) -> Callable[[Context, Any], str]:
    """A filter that is not applied while a template is compiled: the code is the same in every language."""

    @pass_context
    def applied(_: Context, value: Any) -> str:
        return write(value)

    return applied


def _source(environment: Environment, template: str) -> str:
    loader = cast("PackageLoader", environment.loader)
    return loader.get_source(environment, template)[0]


def site_of(request: Request) -> Site:
    """The site of the app that a request came to."""
    return cast("Site", request.app.state.site)


def page(request: Request, template: str, caller: Caller | None, **context: Any) -> Response:
    """A page of the template with what every page shows; `context` comes on top."""
    site, language = site_of(request), language_of(request)
    shown = {
        "path": request.url.path,
        "here": address_of(request),
        "language": language,
        "languages": site.languages,
        "theme": _theme_of(request),
        "script_texts": site.script_texts(language, template),
        "caller": caller,
        "has_loras": site.serves("/api/loras"),
        "public_url": services_of(request).config.public_url,
        "on_cluster": services_of(request).config.on_cluster,
    }
    return respond(request, site.render(language, template, shown | context))


def _theme_of(request: Request) -> str:
    """The theme that the visitor has chosen; empty for that of their system."""
    chosen = request.cookies.get(_THEME_COOKIE, "")
    return chosen if chosen in _THEMES else ""


def fragment(request: Request, template: str, **context: Any) -> Response:
    """A part of a page."""
    return respond(request, site_of(request).render(language_of(request), template, context))


def respond(request: Request, html: str, status: int = 200) -> Response:
    """HTML with the pages' security headers, compressed where the browser accepts it."""
    headers = {
        "Content-Security-Policy": content_security_policy(request),
        "Referrer-Policy": "same-origin",
        "X-Frame-Options": "DENY",
        "Cache-Control": "private, no-cache",
        "Vary": "Accept-Encoding, Accept-Language, Cookie",
        "Content-Language": language_of(request).code,
    }
    body = html.encode()
    if len(body) > _LEAST_COMPRESSED and "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, 4)
        headers["Content-Encoding"] = "gzip"
    return HTMLResponse(body, status, headers=headers)


def content_security_policy(request: Request) -> str:
    """The Content-Security-Policy: scripts and styles from this server only, pictures also from the store.

    Of scripts and styles in a page it takes those that this server also has as files, by their hash.
    """
    sources = {
        kind: " ".join(file.source for name, file in site_of(request).inline.items() if name.endswith(kind))
        for kind in (".js", ".css")
    }
    # a link to any key shows the store's origin
    stored = urlsplit(services_of(request).store.url(_SAMPLE_KEY, 1))
    origin = f"{stored.scheme}://{stored.netloc}"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {sources['.js']}",
            f"style-src 'self' {sources['.css']}",
            "font-src 'self'",
            f"img-src 'self' blob: data: {origin}",
            f"connect-src 'self' {origin}",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )


async def find_caller(request: Request) -> Caller | None:
    """The caller of the session or key that came with the request; None without one that may read."""
    try:
        return await identify(request, "read")
    except (UnauthorizedError, ForbiddenError):
        return None


def sign_in_first(request: Request) -> RedirectResponse:
    """A redirect to the sign-in page, which leads back to this address."""
    return RedirectResponse(f"/sign-in?{urlencode({'next': address_of(request)})}", 303)


def address_of(request: Request) -> str:
    """The path and query that were asked for."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


_TITLES: Final = {
    403: mark("Not allowed"),
    404: mark("Nothing here"),
    405: mark("Not like this"),
    429: mark("Too fast"),
}
_OTHER_TITLE: Final = mark("It did not work")
_ABOUT_THE_BODY: Final = {"content-length", "content-type", "content-encoding"}
_Handler = Callable[[Request, Any], Awaitable[Response]]


def install_error_pages(app: FastAPI) -> None:
    """Show the errors of `app` as pages to browsers.

    It wraps the API's own error handlers, so they are installed before.
    """
    for kind in (SchnellError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _as_page(cast("_Handler", app.exception_handlers[kind])))


def _as_page(handle: _Handler) -> _Handler:
    async def show(request: Request, error: Exception) -> Response:
        answer = await handle(request, error)
        if not _navigates(request):
            return answer
        gettext = language_of(request).texts.gettext
        # errors of the API are English in every language
        told = as_field_error(error) if isinstance(error, RequestValidationError) else error
        said = told.message if isinstance(told, SchnellError) else None
        context = {
            "title": gettext(_TITLES.get(answer.status_code, _OTHER_TITLE)),
            "message": said or gettext("There is no page at this address."),
            "translated": said is None,
        }
        shown = page(request, "error.html", await find_caller(request), **context)
        shown.status_code = answer.status_code
        kept = (each for each in answer.headers.items() if each[0] not in _ABOUT_THE_BODY)
        for name, value in kept:
            shown.headers.setdefault(name, value)
        return shown

    return show


def _navigates(request: Request) -> bool:
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")
