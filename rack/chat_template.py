"""A model's chat template: Jinja from its files, rendered as transformers renders it.

The template is code from a downloaded file, so it runs in jinja2's immutable sandbox with bounds,
without loaders. Two runs of one request must give the same tokens, so its clock stands still.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols

from compiler.errors import ModelError
from rack.errors import RackError
from rack.template_bounds import BoundedEnvironment, render

Message = Mapping[str, Any]

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] or '' }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""What a model without a chat template gets: one line a message."""

NO_TEMPLATE = "no chat template: chats are given to the model as plain `role: content` lines"

# The date that Meta's own templates fall back to where they are given no clock.
_TEMPLATE_DATE = datetime(2024, 7, 26)


class PromptError(RackError, ValueError):
    """A prompt, chat or token id that this model's tokenizer cannot take: the client's to fix."""


class ChatTemplate:
    """One compiled template. `source` None stands for PLAIN_TEMPLATE; `where` names its file.

    Raises ModelError when the template does not compile.
    """

    def __init__(self, source: str | None, *, where: str, bos: str = "", eos: str = "") -> None:
        self.is_plain = source is None
        self._tokens = {"bos_token": bos, "eos_token": eos}
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _TEMPLATE_DATE.strftime
        try:
            self._template = environment.from_string(PLAIN_TEMPLATE if source is None else source)
        except jinja2.TemplateSyntaxError as error:
            got = f"{error.message} in line {error.lineno}"
            raise ModelError(where, "a Jinja chat template", got) from None

    def render(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> str:
        """Give the prompt text, up to where the answer starts; raises PromptError."""
        if not messages:
            raise PromptError("messages: wanted at least one message, got none")
        try:
            return render(
                self._template,
                {
                    "messages": messages, "tools": tools, "add_generation_prompt": True,
                    **self._tokens,
                },
            )  # fmt: skip
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise PromptError(
                f"the model's chat template refuses these messages: {error}"
            ) from error


def _to_json(value: object, indent: int | None = None) -> str:
    """Write JSON as transformers does: Jinja's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json; a folder may lack it."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8
        raise ModelError(str(path), "valid JSON", str(error)) from None
    if not isinstance(config, dict):
        raise ModelError(str(path), "a JSON object", type(config).__name__)
    return config


def read_template(folder: Path, config: dict[str, Any], *, bos: str, eos: str) -> ChatTemplate:
    """Find the chat template: its own file first, then tokenizer_config.json's."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        source = path.read_text(encoding="utf-8")
        return ChatTemplate(source, where=str(path), bos=bos, eos=eos)
    where = f"{folder / 'tokenizer_config.json'}: chat_template"
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        if "default" not in named:
            raise ModelError(where, "one named 'default'", str(sorted(map(str, named))))
        template = named["default"]
    if template is not None and not isinstance(template, str):
        raise ModelError(where, "a string", type(template).__name__)
    return ChatTemplate(template, where=where, bos=bos, eos=eos)
