"""From what a model writes to text and calls of functions, piece by piece.

Understood are Llama's JSON (`{"name": ..., "parameters": {...}}`, with or without
`<|python_tag|>`), the same in `<tool_call>` tags (Hermes, Qwen: `arguments`) or in a list, and
`<function=NAME>{...}</function>`. A call counts when its name is one of those offered. It may
stand where a line begins or behind its tag; whatever else there is stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from rack.text.json_object import json_object

MAX_HELD = 4096
"""How many characters are held back, at most, to see if they become a call."""

_FUNCTION = "<function="
_TAGS = ("<|python_tag|>", "<tool_call>", "[TOOL_CALLS]", _FUNCTION)
_ENDS = ("</tool_call>", "</function>")
_KEYS = ("name", "function", "type", "parameters", "arguments", "id")


def _any(words: Collection[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


_BEFORE = rf"(?:{_any(_TAGS[:-1])})?\s*(?:\[\s*)?"  # before a call's JSON
_START = re.compile(rf"{_any(_TAGS)}|(?<=\n)[ \t]*(?:\[\s*)?\{{")
_MAYBE_START = re.compile(
    rf"\s*(?:\[\s*|{_any([tag[:n] for tag in _TAGS for n in range(1, len(tag))])})?\Z"
)
_AFTER = re.compile(rf"[\s;,\]]*(?:(?:{_any(_ENDS)})[\s;,\]]*)?")
_FIRST_KEY = re.compile(r'\{\s*(?:"(\w*)(")?)?')


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A call whose name is known; `index` counts the calls of an answer."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of a call's arguments; the pieces add up to a JSON text."""

    index: int
    text: str


Piece = Text | Begun | Arguments


class CallReader:
    """Reads one answer. `names` are the functions that may be called."""

    def __init__(self, names: Collection[str]) -> None:
        kind, key = r'"type"\s*:\s*"function"\s*,\s*', r'"(?:parameters|arguments)"\s*:\s*'
        self._names = frozenset(names)
        self._json_head = re.compile(
            rf'{_BEFORE}\{{\s*(?:{kind})?"(?:name|function)"\s*:\s*"({_any(names)})"\s*,\s*'
            rf"(?:{kind})?{key}(?=\{{)"
        )
        self._tag_head = re.compile(rf"{re.escape(_FUNCTION)}({_any(names)})>\s*(?=\{{)")
        self._read = "\n"  # one character that has been dealt with, then what is held
        self._call: _Object | None = None  # the one that is being read
        self._after_call = False
        self.calls = 0

    def feed(self, text: str) -> list[Piece]:
        """Take what the model wrote next; return what has become clear."""
        self._read += text
        return list(self._pieces(final=False))

    def end(self) -> list[Piece]:
        """Return what was held back, at the end."""
        return list(self._pieces(final=True))

    def _pieces(self, *, final: bool) -> Iterator[Piece]:
        held = 0
        while len(self._read) > 1 and held != len(self._read):
            held = len(self._read)
            yield from self._in_call() if self._call is not None else self._in_text(final)

    def _in_call(self) -> Iterator[Piece]:
        assert self._call is not None
        arguments, rest = self._call.feed(self._read[1:])
        if arguments:
            yield Arguments(self.calls - 1, arguments)
        self._read = "\n" + rest
        if self._call.ended:
            self._call, self._after_call = None, True

    def _in_text(self, final: bool) -> Iterator[Piece]:
        """Say text up to where a call begins, or may begin."""
        if self._after_call and not self._skip_end(final):
            return
        start = _START.search(self._read, 1)
        if start is None:
            maybe = _MAYBE_START.search(self._read, 1)
            wait = maybe is not None and not final and len(self._read) - maybe.start() <= MAX_HELD
            yield from self._say(maybe.start() if maybe is not None and wait else len(self._read))
            return
        yield from self._say(max(1, len(self._read[: start.start()].rstrip())))
        at = len(self._read) - len(self._read[1:].lstrip())
        yield from self._candidate(self._read[at:], at, final)

    def _say(self, end: int) -> Iterator[Piece]:
        text, self._read = self._read[1:end], self._read[end - 1 :]
        if text:
            yield Text(text)

    def _candidate(self, text: str, at: int, final: bool) -> Iterator[Piece]:
        """Decide about text in which a call may begin; `at` is where it stands in `_read`."""
        head = self._json_head.match(text) or self._tag_head.match(text)
        if head is not None:
            yield from self._begin(head.group(1), text[head.end() :])
            self._call = _Object(depth=0 if text.startswith(_FUNCTION) else 1)
            return
        if not final and len(text) <= MAX_HELD and _may_become_one(text):
            return
        whole = _Object(depth=0)
        json_text, rest = whole.feed(text[len(_before(text)) :])
        loose = self._loose(json_text) if whole.ended else None
        if loose is None:
            yield from self._say(at + 1)
            return
        name, arguments = loose
        yield from self._begin(name, rest)
        yield Arguments(self.calls - 1, arguments)
        self._after_call = True

    def _begin(self, name: str, rest: str) -> Iterator[Piece]:
        self.calls += 1
        self._read = "\n" + rest
        yield Begun(self.calls - 1, name)

    def _loose(self, text: str) -> tuple[str, str] | None:
        """Read a whole object as a call whose keys stand in another order, or deeper."""
        value = json_object(text)
        if value is None:
            return None
        if isinstance(value.get("function"), dict):
            value = value["function"]
        name = value.get("name", value.get("function"))
        arguments = value.get("parameters", value.get("arguments", {}))
        if not isinstance(name, str) or name not in self._names:
            return None
        if isinstance(arguments, str):  # JSON within JSON
            arguments = json_object(arguments)
        return (name, json.dumps(arguments)) if isinstance(arguments, dict) else None

    def _skip_end(self, final: bool) -> bool:
        """Drop what closes a call and parts it from the next; False if it may go on."""
        rest = self._read[1:]
        after = _AFTER.match(rest)
        assert after is not None
        left = rest[after.end() :]
        more = not left or any(end.startswith(left) for end in _ENDS)
        self._read = "\n" + ("" if more and final else left)
        self._after_call = more
        return not more


class _Object:
    """Follows the braces of a JSON object; `depth` 1 if the object stands within another one."""

    def __init__(self, *, depth: int) -> None:
        self.ended = False
        self._outer = self._depth = depth
        self._inner_ended = self._in_string = self._escaped = False

    def feed(self, text: str) -> tuple[str, str]:
        """Return what of a text belongs to the object, and what comes after it and its outer."""
        inside = 0
        for at, char in enumerate(text, 1):
            self._step(char)
            if not self._inner_ended:
                inside = at
                self._inner_ended = self._depth == self._outer
            self.ended = self._inner_ended and self._depth == 0
            if self.ended:
                return text[:inside], text[at:]
        return text[:inside], ""

    def _step(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped, self._in_string = char == "\\", char != '"'
        elif char == '"':
            self._in_string = True
        else:
            self._depth += (char == "{") - (char == "}")


def _before(text: str) -> str:
    """Return what stands before a call's JSON."""
    found = re.match(_BEFORE, text)
    return found.group() if found else ""


def _may_become_one(text: str) -> bool:
    """Say whether a text that is no call yet may be the beginning of one."""
    if text.startswith(_FUNCTION):
        return re.fullmatch(r"[\w-]*(?:>\s*)?", text[len(_FUNCTION) :]) is not None
    json_text = text[len(_before(text)) :]
    key = _FIRST_KEY.match(json_text)
    if key is None:
        return not json_text
    name, whole = key.groups()
    if not whole and key.end() < len(json_text):
        return False
    known = name is None or (name in _KEYS if whole else any(k.startswith(name) for k in _KEYS))
    whole_object = _Object(depth=0)
    whole_object.feed(json_text)
    return known and not whole_object.ended
