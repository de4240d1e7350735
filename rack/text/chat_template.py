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
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from compiler.errors import ModelError
from compiler.files import names_in, read_json, read_text, shown
from rack.errors import RackError
from rack.text.template_bounds import BoundedEnvironment, render

Message = Mapping[str, Any]

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] or '' }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""What a model without a chat template gets: one line a message."""

_FILE = "chat_template.jinja"
_DEFAULT, _WITH_TOOLS = "default", "tool_use"
_REASONING = ("reasoning_content", "thinking", "reasoning")

NO_TEMPLATE = "no chat template: chats are given to the model as plain `role: content` lines"

# The date that Meta's own templates fall back to where they are given no clock.
_TEMPLATE_DATE = datetime(2024, 7, 26)


class PromptError(RackError, ValueError):
    """A prompt, chat or token id that this model's tokenizer cannot take: a client's error."""


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`: what the assistant wrote, for training masks."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """A model's template, or several by name; `source` None stands for PLAIN_TEMPLATE.

    `where` names the file. `tokens` are the special tokens by name. `takes_tools` says whether the
    template for tools, `source`, uses them. Raises ModelError when a template does
    not compile, or none of several is the default.
    """

    def __init__(
        self,
        source: str | Mapping[str, str] | None,
        *,
        where: str,
        tokens: Mapping[str, Any] | None = None,
    ) -> None:
        self.is_plain = source is None
        self._tokens = dict(tokens or {})
        if not isinstance(source, Mapping):
            source = {_DEFAULT: PLAIN_TEMPLATE if source is None else source}
        if _DEFAULT not in source:
            raise ModelError(where, f"one named {_DEFAULT!r}", shown(sorted(source)))
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _TEMPLATE_DATE.strftime
        self._templates = {
            name: _compile(environment, text, where) for name, text in source.items()
        }
        self.source = source.get(_WITH_TOOLS, source[_DEFAULT])
        names = environment.parse(self.source).find_all(nodes.Name)
        self.takes_tools = any(name.name == "tools" for name in names)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
    ) -> str:
        """Give the prompt text, up to where the answer starts; raises PromptError."""
        if not messages:
            raise PromptError("messages: wanted at least one message, got none")
        default = self._templates[_DEFAULT]
        template = default if tools is None else self._templates.get(_WITH_TOOLS, default)
        try:
            values = {
                "messages": list(map(_as_given, messages)), "tools": tools,
                "documents": documents, "add_generation_prompt": True, **self._tokens,
            }  # fmt: skip
            return render(template, values)
        except Exception as error:  # a template is code of the model's, and may fail in any way
            raise PromptError(
                f"the model's chat template refuses these messages: {error}"
            ) from error


def _compile(environment: BoundedEnvironment, text: str, where: str) -> jinja2.Template:
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        got = f"{str(error.message).rstrip('.')} in line {error.lineno}"
    except Exception as error:  # Python's own limits: nested too deeply, no whole characters
        got = f"{type(error).__name__}: {error}"
    raise ModelError(where, "a Jinja chat template", got)


def _as_given(message: Message) -> dict[str, Any]:
    """Give a message as transformers does: without nulls, reasoning under each of its names."""
    out = {key: value for key, value in message.items() if value is not None}
    found = [out[name] for name in _REASONING if name in out]
    return {"thinking": found[0], **out, "reasoning_content": found[0]} if found else out


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers does: Jinja's own filter would escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
        sort_keys=sort_keys,
    )  # fmt: skip


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def read_template(
    folder: Path, config: Mapping[str, Any], tokens: Mapping[str, Any]
) -> ChatTemplate:
    """Find the chat templates: files of their own first, then tokenizer_config.json's.

    Last comes chat_template.json, which old processors wrote.
    """
    if files := _template_files(folder):
        return ChatTemplate(files, where=str(folder / _FILE), tokens=tokens)
    where = f"{folder / 'tokenizer_config.json'}: chat_template"
    found = config.get("chat_template")
    if found is None and (old := read_json(folder / "chat_template.json")) is not None:
        where = f"{folder / 'chat_template.json'}: chat_template"
        found = old.get("chat_template")
    if isinstance(found, list):
        found = dict(_named(where, entry) for entry in found)
    if isinstance(found, dict) and not all(isinstance(text, str) for text in found.values()):
        raise ModelError(where, "strings by name", shown(found))
    if found is not None and not isinstance(found, str | dict):
        raise ModelError(where, "a string", type(found).__name__)
    return ChatTemplate(found, where=where, tokens=tokens)


def _template_files(folder: Path) -> dict[str, str]:
    """Read chat_template.jinja and additional_chat_templates/NAME.jinja, by name."""
    texts = ((path.stem, read_text(path)) for path in additional_templates(folder))
    files = {_DEFAULT: read_text(folder / _FILE), **dict(texts)}
    return {name: text for name, text in files.items() if text is not None}


def additional_templates(folder: Path) -> list[Path]:
    """Give the files of templates beside the default one."""
    more = folder / "additional_chat_templates"
    return [more / name for name in names_in(more) if name.endswith(".jinja")]


def _named(where: str, entry: Any) -> tuple[str, str]:
    pair = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
    if not isinstance(pair[0], str) or not isinstance(pair[1], str):
        raise ModelError(where, "a name and a template in each entry", shown(entry))
    return pair[0], pair[1]
