"""Every text of a template comes from the catalogue, in branches that no test draws as well."""

import re
from collections.abc import Iterator

import pytest
from jinja2 import Environment, PackageLoader, nodes

from page_texts import unbracketed

_ENVIRONMENT = Environment(loader=PackageLoader("schnell.web.pages"), extensions=["jinja2.ext.i18n"], autoescape=True)


#: A class of the page, and a macro that writes attributes: they stand in no tag of the template.
_NO_TEXT = re.compile(r"\{% (block main_class|macro validity).*?\{% end(block|macro) %\}")


def results_of(node: nodes.Node | None) -> Iterator[str]:
    """The constant strings that an expression may give."""
    if isinstance(node, nodes.Const):
        yield from [node.value] if isinstance(node.value, str) else []
    for part in _parts_of(node):
        yield from results_of(part)


def _parts_of(node: nodes.Node | None) -> list[nodes.Node | None]:
    """The expressions that an expression's result is, or is put together from."""
    match node:
        case nodes.CondExpr():
            return [node.expr1, node.expr2]
        case nodes.BinExpr():
            return [node.left, node.right]
        case nodes.Concat():
            return [*node.nodes]
        case nodes.Filter():
            return [node.node]
        # one of a table's values: {…}[name], and {…}.get(name)
        case nodes.Getitem(node=nodes.Dict() as table) | nodes.Call(node=nodes.Getattr(node=nodes.Dict() as table)):
            return [pair.value for pair in table.items]
    return []


def html_of(source: str) -> str:
    """A template with all of its branches, and of each expression the constant strings that it may give."""
    parts: list[str] = []
    for output in _ENVIRONMENT.parse(_NO_TEXT.sub("", source)).find_all(nodes.Output):
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                parts.append(node.data)
            else:
                parts += results_of(node)
    return "".join(parts)


@pytest.mark.parametrize("name", _ENVIRONMENT.list_templates())
def test_a_template_holds_no_text_of_its_own(name: str) -> None:
    loader = _ENVIRONMENT.loader
    assert loader is not None
    assert unbracketed(html_of(loader.get_source(_ENVIRONMENT, name)[0]), set()) == []


@pytest.mark.parametrize(
    "source",
    [
        "<p>Not translated</p>",
        '<button title="Close"></button>',
        '{% if x %}<img alt="A picture">{% endif %}',
        "<p>{{ 'waiting' if x else _('drawn') }}</p>",
        "<td>{{ {'key': 'a key'}[method] }}</td>",
        "{% for each in all %}<b>{{ each }}</b>{% else %}Nothing{% endfor %}",
    ],
)
def test_a_text_that_is_not_translated_is_found(source: str) -> None:
    assert len(unbracketed(html_of(source), set())) == 1


def test_translated_texts_are_none() -> None:
    source = "<p>{{ _('Translated') }}{% trans %}And <b>this</b>{% endtrans %}</p><code>code</code>"
    assert unbracketed(html_of(source), set()) == []
