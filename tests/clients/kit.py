"""What the clients' scripts share: where the server is, and how a check is reported.

A script defines functions whose names are checks (`chat`, `stream`, `structured`, `tools`, …), and
ends with `run(...)`. Each check uses its client as its makers document it; it returns a short text
to show, and raises where the client does not get what it asked for.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

URL = os.environ["RACK_URL"]
MODEL = os.environ["RACK_MODEL"]
QUESTION = "What is the weather in Paris?"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
"""A function in the chat API's form."""

UNITS = Literal["celsius", "fahrenheit"]


def run(*checks: Callable[[], Any], package: str) -> None:
    """Run the checks, print a JSON line each, and exit with 1 if one failed."""
    failed, loop = 0, asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    for check in checks:
        try:
            shown = check()
            if inspect.iscoroutine(shown):
                shown = loop.run_until_complete(shown)
            ok = True
        except Exception as error:
            traceback.print_exc()
            ok, shown, failed = False, f"{type(error).__name__}: {error}", failed + 1
        line = {"package": package, "version": version(package), "check": check.__name__}
        print(json.dumps({**line, "ok": ok, "shown": " ".join(str(shown).split())[:300]}))
    sys.exit(failed > 0)


def wanted(condition: object, what: object) -> None:
    """Raise AssertionError, showing `what`, unless the condition holds."""
    if not condition:
        raise AssertionError(f"got {what!r}")
