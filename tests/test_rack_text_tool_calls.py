"""Calls in what a model writes: which are seen, and that reading in pieces changes nothing."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rack.text.tool_calls import MAX_HELD, Arguments, Begun, CallReader, Text
from rack.text.tools import LLAMA, TAGGED

NAMES = ("weather", "f", "f2")


def read(text: str, cuts: tuple[int, ...] = ()) -> tuple[str, list[tuple[str, str]]]:
    """Return the text and the calls that a reader finds, given a text cut into pieces."""
    reader = CallReader(NAMES)
    ends = [0, *sorted(cuts), len(text)]
    pieces = [p for a, b in itertools.pairwise(ends) for p in reader.feed(text[a:b])]
    pieces += reader.end()
    said, calls = "", []
    for piece in pieces:
        if isinstance(piece, Text):
            said += piece.text
        elif isinstance(piece, Begun):
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        elif isinstance(piece, Arguments):
            assert piece.index == len(calls) - 1
            name, before = calls[-1]
            calls[-1] = (name, before + piece.text)
    assert reader.calls == len(calls)
    return said, calls


CALLS = {
    '{"name": "f", "parameters": {"a": "}{\\""}}': [("f", '{"a": "}{\\""}')],
    '{"name":"f2","arguments":{}}': [("f2", "{}")],
    '<|python_tag|>{"name": "f", "parameters": {"a": {"b": [1]}}}': [("f", '{"a": {"b": [1]}}')],
    "\n\n" + '{"name": "f", "parameters": {}}\n': [("f", "{}")],
    '{"type": "function", "name": "f", "parameters": {}}': [("f", "{}")],
    '{"type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}': [
        ("f", '{"x": 1}')
    ],
    '{"parameters": {"x": 1}, "name": "f"}': [("f", '{"x": 1}')],
    '{"function": "f", "parameters": {"x": 1}}': [("f", '{"x": 1}')],
    '{"name": "f", "parameters": {"x": 1}, "id": "}"}': [("f", '{"x": 1}')],
    '{"name": "f"}': [("f", "{}")],
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>': [
        ("f", '{"a": 1}'),
        ("weather", "{}"),
    ],
    '{"name": "f", "parameters": {"x": 1}}; {"name": "f", "parameters": {"x": 2}}': [
        ("f", '{"x": 1}'),
        ("f", '{"x": 2}'),
    ],
    '[{"name": "f", "arguments": {}}, {"name": "f2", "arguments": {}}]': [
        ("f", "{}"),
        ("f2", "{}"),
    ],
    '[TOOL_CALLS] [{"name": "f", "arguments": {}}]': [("f", "{}")],
    '<function=f>{"x": 1}</function>': [("f", '{"x": 1}')],
    '{"name": "f", "parameters": {"x": ': [("f", '{"x": ')],  # cut off
}


@pytest.mark.parametrize("text", CALLS)
def test_calls(text: str) -> None:
    assert read(text) == ("", CALLS[text])
    assert read(text, tuple(range(len(text)))) == ("", CALLS[text])


@pytest.mark.parametrize(
    "text",
    [
        "",
        'plain { text } <b> < [1] \n [ {"k"}',
        '{"a": 1}',
        '{"name": "unknown", "parameters": {}}',
        '{"name": "f", "parameters": null}',
        '{"name": "f", "parameters": [1]}',
        '{"name": "f", "parameters": "no json"}',
        '{"name": 3, "parameters": {}}',
        'in a line {"name": "f", "parameters": {}}',
        "<tool_call> oops",
        "<tool_call>5",
        "<function=g>{}</function>",
        "  spaces around  \n",
        '{"name": "f", "param',
        '{"name": ' + "[" * 3000,
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read(text) == (text, [])
    assert read(text, tuple(range(len(text)))) == (text, [])


def test_text_before_and_after_a_call() -> None:
    call = '{"name": "f", "parameters": {}}'
    assert read(f"Let me see.\n\n{call}") == ("Let me see.", [("f", "{}")])
    assert read(f"{call}\nDone. {call}") == ("Done. " + call, [("f", "{}")])


def test_arguments_come_as_they_are_written() -> None:
    reader = CallReader(NAMES)
    assert reader.feed('{"name": "f", "parameters": ') == []
    assert reader.feed('{"a"') == [Begun(0, "f"), Arguments(0, '{"a"')]
    assert reader.feed(": 1") == [Arguments(0, ": 1")]
    assert reader.feed("}}") == [Arguments(0, "}")]
    assert reader.end() == []


def test_no_more_is_held_back_than_may_become_a_call() -> None:
    reader = CallReader(NAMES)
    assert reader.feed("a <tool") == [Text("a")]
    assert reader.feed("box>") == [Text(" <toolbox>")]
    begin = '{"name": "' + "x" * MAX_HELD
    assert reader.feed("\n") == []
    assert "".join(p.text for p in reader.feed(begin) if isinstance(p, Text)) == "\n" + begin
    assert reader.feed("\n" * (MAX_HELD + 1)) == [Text("\n" * (MAX_HELD + 1))]


arguments = st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers(), max_size=3)


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), arguments), max_size=3),
    st.sampled_from([LLAMA, TAGGED]),
    st.text("ab {}\"'<\n", max_size=9),
    st.lists(st.integers(0, 400), max_size=20),
)
@settings(max_examples=100)
def test_the_forms_are_read_back(
    calls: list[tuple[str, dict[str, object]]], form: object, before: str, cuts: list[int]
) -> None:
    assert form in (LLAMA, TAGGED)
    made = [(name, json.dumps(given)) for name, given in calls]
    text = before + "\n" + "\n".join(form.call(*one) for one in made)  # type: ignore[attr-defined]
    inside = tuple(min(cut, len(text)) for cut in cuts)
    said, found = read(text, inside)
    assert found == made
    assert said == (before.rstrip() if calls else text)
