"""Random JSON keeps to its schema, and ends."""

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from rack_kit import BOS, tokenizer
from schedules import machine

from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout
from rack.run.completion import Completion
from rack.run.engine import Engine
from rack.run.timing_rack import TimingRack
from rack.text.closing import Closing, Spelling
from rack.text.grammar import json_grammar, narrowed, without_doubles
from rack.text.sampler import SamplingParams
from rack.text.tool_calls import CallReader
from rack.text.tools import LLAMA, Tool, Tools

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.com$"},
        "height": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        "kind": {"anyOf": [{"type": "null"}, {"const": "x"}]},
    },
    "required": ["name", "age", "mail", "height", "tags", "kind"],
}
TREE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "left": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                "right": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["left", "right"],
        }
    },
    "$ref": "#/$defs/Node",
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": PERSON,
    "tree": TREE,
    "any object": {"type": "object"},
    "any value": {},
    "integer": {"type": "integer", "multipleOf": 7},
    "list": {"type": "array", "items": {"type": "number"}, "minItems": 2},
    "times": {
        "properties": {
            name: {"type": "string", "format": name}
            for name in ("date-time", "date", "uuid", "email", "ipv4", "uri", "duration")
        },
        "type": "object",
        "required": ["date-time", "date", "uuid", "email", "ipv4", "uri", "duration"],
    },
    "any of": {"anyOf": [{"type": "array", "items": {"type": "object"}}, {"type": "object"}]},
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = replace(PRESETS["tiny"], max_position_embeddings=2048)
    options = Options(dtype="int8", prefill_chunk=8, buckets=(2048,))
    model = compile_model(config, machine("lesson"), parse_layout("1x1"), options)
    return Engine(TimingRack(model), tokenizer())


def drawn(engine: Engine, schema: dict[str, Any], **options: Any) -> Completion:
    params = SamplingParams(
        grammar=json_grammar(without_doubles(narrowed(schema)), "response_format"), **options
    )
    return engine.generate([BOS], params).run()


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_json_meets_its_schema_and_ends(engine: Engine, name: str) -> None:
    texts = set()
    for seed in range(12):
        done = drawn(engine, SCHEMAS[name], seed=seed)
        assert done.finish_reason == "stop", done.text
        jsonschema.validate(json.loads(done.text), SCHEMAS[name])
        texts.add(done.text)
    assert len(texts) >= 5
    assert drawn(engine, SCHEMAS[name], seed=3).text == drawn(engine, SCHEMAS[name], seed=3).text


def test_it_ends_within_max_tokens_where_it_can(engine: Engine) -> None:
    for seed in range(30):
        done = drawn(engine, {"type": "object"}, seed=seed, max_tokens=24)
        assert (done.finish_reason, type(json.loads(done.text))) == ("stop", dict)
    done = drawn(engine, {"type": "string", "minLength": 1000}, max_tokens=24)
    assert done.finish_reason == "length"


def test_random_calls_meet_their_schemas(engine: Engine) -> None:
    tools = Tools(offered=(Tool(name="f", parameters=PERSON), Tool(name="g")))
    names = set()
    for seed in range(12):
        params = SamplingParams(grammar=tools.grammar(LLAMA, random=True), seed=seed)
        done = engine.generate([BOS], params).run()
        assert done.finish_reason == "stop"
        for line in done.text.splitlines():
            call = json.loads(line)
            names.add(call["name"])
            schema = PERSON if call["name"] == "f" else {"maxProperties": 0}
            jsonschema.validate(call["parameters"], schema)
        reader = CallReader(tools.names)
        reader.feed(done.text)
        assert reader.calls == len(done.text.splitlines())
    assert names == {"f", "g"}


BYTES = Spelling(
    pool=range(256), token_of={byte: byte for byte in range(256)}, eos=(257,),
    bytes_of=lambda token: bytes([token]),
)  # fmt: skip


def choice(text: str, allowed: str) -> str | None:
    """Return which of some characters is taken in a hurry after a text."""
    closing = Closing(BYTES, lambda token: token in list(allowed.encode()))
    for byte in text.encode():
        closing.follow(byte)
    token = closing.draw(1, 1, hurry=True)
    return None if token is None else chr(token)


def test_what_ends_the_text_soonest_is_taken() -> None:
    assert choice('{"a": 1', "0,} ") == "}"
    assert choice('{"a": [1', "0,] ") == "]"
    assert choice('{"a": [1', "0,.") == ","
    assert choice('{"a": "x', 'y"\\ ') == '"'
    assert choice('{"a": "x', "y@\\") == "@"
    assert choice('{"a": "x\\', '"n') in '"n'  # type: ignore[operator]
    assert choice('{"a": "x\\"', 'yz"') == '"'
    assert choice('{"a": ', '"n{') == "n"
    assert choice('{"a": ', '"[{') == '"'
    assert choice('{"a": ', "[{") == "["
    assert choice("", "~") is None  # of no kind


def test_the_end_of_sequence_comes_before_all() -> None:
    assert Closing(BYTES, lambda token: True).draw(1, 1, hurry=True) == 257
