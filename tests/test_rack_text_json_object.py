"""JSON objects that others write; what is none is none, whatever it is."""

from __future__ import annotations

import pytest

from rack.text.json_object import json_object


def test_an_object() -> None:
    assert json_object(' {"a": [1, {"b": null}]} ') == {"a": [1, {"b": None}]}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"{}"', "1", '{"a": }', "[" * 100_000])
def test_no_object(text: str) -> None:
    assert json_object(text) is None
