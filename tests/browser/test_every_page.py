import pytest
from axe_playwright_python.sync_playwright import Axe

from browser.conftest import Visit

_PAGES = ("/?prompt=x", "/gallery", "/loras", "/account", "/docs", "/docs/flux-schnell-lora", "/sign-in")


@pytest.mark.parametrize(("color_scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_no_page_has_an_accessibility_or_console_problem(visit: Visit, color_scheme: str, width: int) -> None:
    with visit(color_scheme=color_scheme, width=width) as visitor:
        for path in _PAGES:
            page = visitor.open(path)
            found = Axe().run(page)
            assert found.violations_count == 0, f"{path}\n{found.generate_report()}"
            overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, f"{path} is {overflow} px too wide at {width}"
        assert visitor.complaints == []


def test_the_openapi_viewer_runs_under_the_policy(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/docs/openapi")
        page.wait_for_selector(".opblock")
        assert visitor.complaints == []


def test_the_playground_is_light(visit: Visit) -> None:
    with visit(signed_in=False) as visitor:
        session = visitor.page.context.new_cdp_session(visitor.page)
        session.send("Network.enable")
        sizes: list[float] = []
        session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
        visitor.open("/")
        assert 0 < sum(sizes) <= 150_000
