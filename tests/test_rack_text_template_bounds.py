"""Chat templates that ask for too much in one expression, and those that do not."""

from __future__ import annotations

import jinja2
import pytest

from rack.text.chat_template import ChatTemplate, PromptError
from rack.text.template_bounds import MOST, BoundedEnvironment, render

MUCH = 2_000_000_000


def made(source: str) -> str:
    return render(BoundedEnvironment().from_string(source), {"n": MUCH, "w": "%2000000000d"})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'x' * 2000000000 }}", r"`\*` would make more than 16777216 characters or items"),
        ("{{ n * 'x' }}", r"`\*` would make more"),
        ("{{ [1, 2] * n }}", r"`\*` would make more"),
        ("{{ 10 ** n }}", r"`\*\*` would make more"),
        ("{{ '%2000000000d' % 1 }}", "`%` would make more"),
        ("{{ w % 1 }}", "`%` would make more"),
        ("{{ '%*d' % (n, 1) }}", "`%` would make more"),
        ("{{ 'x'.center(n) }}", "a call with a number above 16777216"),
        ("{{ 'x'.ljust(width=n) }}", "a call with a number above 16777216"),
        ("{{ 'x'|center(n) }}", "a filter with a number above 16777216"),
        ("{{ 'x'|indent(width=n) }}", "a filter with a number above 16777216"),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "loops over more than 16777216 numbers in all",
        ),
    ],
)
def test_too_much_is_refused_when_it_is_rendered(source: str, message: str) -> None:
    with pytest.raises(jinja2.TemplateError, match=message):
        made(source)


def test_what_templates_do_is_as_before() -> None:
    source = (
        "{{ 'ab' * 3 }} {{ 7 % 3 }} {{ '%05.1f|%s' % (2.5, 'x') }} {{ 2 ** 10 }} {{ 1.5 * 2 }} "
        "{{ 'x'.center(5) }} {{ 'x'|center(5) }} {{ range(4)[1:]|list }} {{ '{:>4}'.format(7) }} "
        "{{ [1] * 2 }} {{ none }} {{ 2000000000 // 3 }}"
    )
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(source).render()
    assert (
        made(source)
        == plain
        == "ababab 1 002.5|x 1024 3.0   x     x   [1, 2, 3]    7 [1, 1] None 666666666"
    )


def test_text_without_end_is_refused() -> None:
    source = "{% for a in range(99999) %}{% for b in range(99999) %}words {% endfor %}{% endfor %}"
    with pytest.raises(jinja2.TemplateError, match=f"writes more than {MOST} characters"):
        made(source)


def test_nothing_is_worked_out_when_a_template_is_loaded() -> None:
    ChatTemplate("{{ 'x' | center(200000000000000) }}", where="there")
    template = ChatTemplate("{{ '%2000000000d' % 1 }}", where="there")
    with pytest.raises(PromptError, match="the model's chat template refuses these messages: `%`"):
        template.render([{"role": "user", "content": "hi"}])
