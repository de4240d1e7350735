"""A sandbox for chat templates that a template cannot make unbounded in one expression.

jinja2's sandbox keeps a template from the host; it does not keep it from asking for gigabytes:
`'x' * 10**10`, `'%10000000000d' % 1`, `'x'.center(10**10)`. Those are refused here, and so is text
without end, and loops over more numbers in all than a prompt has characters. Loading a template
computes nothing. What is left (loops over messages, formats) the renderer bounds: the server
renders in a process with limits (rack/serve/reader.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

MOST = 16 << 20
"""Characters, items or bits that one operation, or a whole prompt, may have."""
_DIGITS = re.compile(r"\d{8,18}")


@jinja2.pass_context
def _as_it_is(context: Context, value: Any) -> Any:
    return value


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; operations with too large a result raise SecurityError."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        # Without these jinja2 works constants out when it loads a template.
        super().__init__(optimized=False, finalize=_as_it_is, **options)
        self.filters = {name: _modest(one) for name, one in self.filters.items()}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > MOST:
            raise SecurityError(f"`{operator}` would make more than {MOST} characters or items")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_numbers("a call", args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _check_numbers(what: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    given = [one for one in (*args, *kwargs.values()) if isinstance(one, int)]
    if max(map(abs, given), default=0) > MOST:
        raise SecurityError(f"{what} with a number above {MOST}")


def _modest(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses numbers with which its result would be too large."""

    @functools.wraps(filter_)  # jinja2 keeps marks on a filter, such as that it takes the context
    def modest(*args: Any, **kwargs: Any) -> Any:
        _check_numbers("a filter", args, kwargs)
        return filter_(*args, **kwargs)

    return modest


class _Ranges:
    """`range` of one rendering: loops inside loops add up."""

    def __init__(self) -> None:
        self._left = MOST

    def __call__(self, *bounds: int) -> range:
        made = safe_range(*bounds)
        self._left -= len(made)
        if self._left < 0:
            raise SecurityError(f"loops over more than {MOST} numbers in all")
        return made


def _size(operator: str, left: Any, right: Any) -> int:
    """Return an upper bound of a result's size; 0 where no number decides it."""
    if operator == "%" and isinstance(left, str | bytes):
        text = left if isinstance(left, str) else left.decode("latin-1")
        wide = any(int(digits) > MOST for digits in _DIGITS.findall(text))
        return MOST + 1 if wide or "*" in text else 0
    if operator == "**":
        whole = isinstance(left, int) and isinstance(right, int)
        return left.bit_length() * max(0, right) if whole else 0
    if operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, Sized) and isinstance(times, int):
                return len(many) * max(0, times)
    return 0


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """Render a template; its text may have MOST characters. Raises TemplateError."""
    parts, size = [], 0
    for part in template.generate(**values, range=_Ranges()):
        size += len(part)
        if size > MOST:
            raise jinja2.TemplateRuntimeError(
                f"the model's chat template writes more than {MOST} characters"
            )
        parts.append(part)
    return "".join(parts)
