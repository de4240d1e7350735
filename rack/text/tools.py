"""Functions that a model may call: how a prompt offers them, and the grammar of their calls.

A checkpoint whose chat template takes tools gets them and the chat as transformers hands them over:
arguments as objects, not as JSON text. Others get the plain form: the first message lists the
functions, calls of earlier answers are written as the model shall write them, and results are user
messages. `rack.text.tool_calls` reads what the model writes. No HTTP here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rack.text.chat_template import ChatTemplate, Message, PromptError
from rack.text.grammar import Grammar, Schema, narrowed, part, without_doubles
from rack.text.json_object import json_object
from rack.text.tokens import Tokenizer

MOST_CALLS = 16
"""How many calls an answer may have where they are written by a grammar."""

_PLAIN_LIST = """You can call these functions:
{functions}
To call one, answer only with {form}"""
_PLAIN_RESULT = "Result of {name}: {content}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function on offer; `param` names its JSON schema in messages about it."""

    name: str
    description: str | None = None
    parameters: Schema | None = None  # of its arguments, an object
    strict: bool | None = None  # as given; arguments are held to the schema either way
    param: str = "tools"

    def wire(self) -> dict[str, Any]:
        """Return it as chat templates expect it: as the API has it, without what was not given."""
        fields = {
            "name": self.name, "description": self.description, "parameters": self.parameters,
            "strict": self.strict,
        }  # fmt: skip
        given = {key: value for key, value in fields.items() if value is not None}
        return {"type": "function", "function": given}

    def arguments(self) -> Schema:
        """Return the schema that its arguments are held to: an object, closed unless it says so."""
        return narrowed({"properties": {}, **(self.parameters or {}), "type": "object"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a request offers and asks for: calls if the model likes, or calls and nothing else."""

    offered: tuple[Tool, ...]
    required: bool = False
    named: str | None = None  # the only one that may be called, once; then `required` too
    parallel: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The functions that may be called."""
        return tuple(tool.name for tool in self._callable())

    def _callable(self) -> Sequence[Tool]:
        return [tool for tool in self.offered if self.named in (None, tool.name)]

    def grammar(self, form: Form, *, random: bool = False) -> Grammar:
        """Return the grammar of an answer that is calls; `random` if no model chooses the words."""
        rules, parts = [], []
        for number, tool in enumerate(self._callable()):
            schema = without_doubles(tool.arguments()) if random else tool.arguments()
            arguments = part(schema, tool.param)
            parts.append(arguments)
            opening, closing = json.dumps(form.opening(tool.name)), json.dumps(form.closing)
            rules.append(f"call{number}: {opening} arguments{number} {closing}")
            rules.append(f"arguments{number}: %json {arguments.schema}")
        calls = " | ".join(f"call{number}" for number in range(len(parts)))
        several = self.parallel and self.named is None
        more = f" ({json.dumps(form.between)} call){{0,{MOST_CALLS - 1}}}" if several else ""
        text = "\n".join((f"start: call{more}", f"call: {calls}", *rules))
        return Grammar(text=text, parts=tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a model writes a call: between `before` and `after`, a JSON object."""

    before: str = ""
    key: str = "parameters"
    after: str = ""
    between: str = "\n"

    def opening(self, name: str) -> str:
        """Return a call's text up to its arguments."""
        return f'{self.before}{{"name": {json.dumps(name)}, "{self.key}": '

    @property
    def closing(self) -> str:
        """A call's text from its arguments on."""
        return "}" + self.after

    def call(self, name: str, arguments: str) -> str:
        """Return a whole call."""
        return self.opening(name) + arguments + self.closing


LLAMA = Form()
TAGGED = Form(before="<tool_call>\n", key="arguments", after="\n</tool_call>")


def form_of(template: ChatTemplate) -> Form:
    """Return how a template tells the model to write calls; the plain form is Llama's."""
    return TAGGED if template.takes_tools and "<tool_call>" in template.source else LLAMA


def chat_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Tools | None = None
) -> list[int]:
    """Return the ids of `chat_text`. Raises PromptError."""
    return tokenizer.encode_chat(chat_text(tokenizer.template, messages, tools))


def chat_text(
    template: ChatTemplate, messages: Sequence[Message], tools: Tools | None = None
) -> str:
    """Return the text of a chat in which functions are offered, called and answered.

    Messages are as the API has them, calls with their arguments as JSON text. Raises PromptError.
    """
    if not template.takes_tools:
        return template.render(_plain_chat(messages, tools))
    offered = [tool.wire() for tool in tools.offered] if tools is not None else None
    chat = [_with_objects(message) for message in messages]
    try:
        return template.render(chat, offered)
    except PromptError:  # Llama's refuses several calls in one message
        parted = _one_call_each(chat)
        if len(parted) == len(chat):
            raise
    return template.render(parted, offered)


def _with_objects(message: Message) -> Message:
    """Give calls their arguments as objects; what is no JSON object stays text."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json_object(function["arguments"] or "{}")
    if arguments is None:
        arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _one_call_each(chat: Sequence[Message]) -> list[Message]:
    """Give each call of an answer a message of its own, and its result right behind it."""
    results = {one.get("tool_call_id"): one for one in chat if one["role"] == "tool"}
    moved: set[str] = set()
    out: list[Message] = []
    for message in chat:
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            if message.get("tool_call_id") not in moved:
                out.append(message)
            continue
        for number, call in enumerate(calls):
            content = message.get("content") if number == 0 else None
            out.append({**message, "content": content, "tool_calls": [call]})
            if call["id"] in results:
                out.append(results[call["id"]])
                moved.add(call["id"])
    return out


def _plain_chat(messages: Sequence[Message], tools: Tools | None) -> list[Message]:
    """Write calls, their results and the functions on offer as text."""
    names = {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls") or ()
    }
    chat: list[dict[str, Any]] = []
    results = False  # whether the last message is made of results
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            name = names.get(message["tool_call_id"], "the function")
            content = _PLAIN_RESULT.format(name=name, content=content)
            if results:  # many templates want user and assistant to take turns
                chat[-1]["content"] += "\n" + content
            else:
                chat.append({"role": "user", "content": content})
        else:
            calls = [
                LLAMA.call(call["function"]["name"], call["function"]["arguments"] or "{}")
                for call in message.get("tool_calls") or ()
            ]
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            chat.append({**rest, "content": "\n".join(filter(None, [content, *calls]))})
        results = role == "tool"
    if tools is not None and chat:
        # Not a message of its own: some templates have no system role.
        chat[0]["content"] = "\n\n".join(filter(None, [_listed(tools), chat[0]["content"]]))
    return list(chat)


def _listed(tools: Tools) -> str:
    functions = (json.dumps(tool.wire()["function"], ensure_ascii=False) for tool in tools.offered)
    form = LLAMA.call("NAME", "{ARGUMENTS}").replace('"NAME"', "NAME")
    return _PLAIN_LIST.format(functions="\n".join(functions), form=form)
