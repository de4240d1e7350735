"""Constrained decoding: what comes out parses and keeps to the schema; what cannot is refused."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from rack_kit import BOS, EOS, saying, scripted, tokenizer
from schedules import compiled

from rack.errors import RequestError
from rack.run.completion import Completion
from rack.run.config import RunConfig
from rack.run.engine import Engine, check_request
from rack.run.session import Session, prepare
from rack.text import constrain
from rack.text.constrain import Constraint
from rack.text.grammar import Grammar, Schema, json_grammar
from rack.text.sampler import SamplingParams
from rack.text.tokenizer import load_tokenizer

ANY_OBJECT = {"type": "object"}
CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "ports": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "size", "ports"],
    "additionalProperties": False,
}


def of(schema: Schema) -> Grammar:
    return json_grammar(schema, "response_format")


def refusal(schema: Schema = ANY_OBJECT, executor: str = "fast", **options: Any) -> str:
    model = options.pop("model", None) or compiled()
    with pytest.raises(RequestError) as caught:  # noqa: PT012
        params = SamplingParams(grammar=of(schema), **options)
        check_request(model, tokenizer(), [BOS], params, executor=executor)
    return str(caught.value)


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> Iterator[Engine]:
    config = RunConfig(model=str(stories260k), layout="1x1", transport="local", dtype="fp16")
    with Session(prepare(config)) as session:
        yield session.engine


def city(completion: Completion) -> Any:
    """Check that a completion is one text of CITY, and give its value."""
    assert completion.finish_reason == "stop"
    value = json.loads(completion.text)
    assert list(value) == ["name", "size", "ports"]
    assert len(value["name"]) <= 12
    assert value["size"] in ("small", "large")
    assert len(value["ports"]) <= 3
    assert all(type(port) is int for port in value["ports"])
    return value


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_a_real_model_keeps_to_a_schema(stories: Engine, temperature: float) -> None:
    prompt = stories.tokenizer.encode("Once upon a time")
    texts = []
    for seed in (1, 2, 1):
        params = SamplingParams(
            grammar=of(CITY), temperature=temperature, seed=seed, max_tokens=400
        )
        done = stories.generate(prompt, params).run()
        city(done)
        texts.append(done.text)
    assert texts[0] == texts[2]
    assert (texts[0] == texts[1]) == (temperature == 0)


def test_any_object() -> None:
    text = '{"a": [1, null, {"b": "\\n"}]}'
    params = SamplingParams(grammar=of(ANY_OBJECT))
    done = scripted(saying(text + "!")).generate([BOS], params).run()
    assert (done.text, done.finish_reason) == (text, "stop")


def test_the_bytes_of_a_model_without_a_tokenizer() -> None:
    # The script wants "]" always: where it is not allowed, the likeliest token that is gets taken.
    done = scripted(saying("]")).generate([BOS], SamplingParams(grammar=of(CITY))).run()
    assert city(done) == {"name": "]" * 12, "size": "large", "ports": []}


def test_it_ends_without_a_step_for_the_end_of_sequence() -> None:
    schema = {"const": {"a": 1}}
    done = scripted(saying('{"a":1}')).generate([BOS], SamplingParams(grammar=of(schema))).run()
    assert (done.text, done.finish_reason) == ('{"a":1}', "stop")
    assert len(done.decode_cycles) == len('{"a":1}')


def test_the_model_may_end_where_the_schema_lets_it() -> None:
    eos = next(iter(tokenizer().eos_ids))
    engine = scripted([*saying("12"), eos])
    done = engine.generate([BOS], SamplingParams(grammar=of({"type": "integer"}))).run()
    assert (done.text, done.finish_reason) == ("12", "stop")
    assert done.token_ids[-1] == eos


def test_max_tokens_cuts_it_short() -> None:
    params = SamplingParams(grammar=of(CITY), max_tokens=5)
    done = scripted(saying("x")).generate([BOS], params).run()
    assert (len(done.token_ids), done.finish_reason) == (5, "length")


def test_the_hash_is_over_the_logits_that_came_not_those_that_were_allowed() -> None:
    engine = scripted([65, 66])
    params = SamplingParams(grammar=of(ANY_OBJECT), max_tokens=2)
    done = engine.generate([BOS], params).run()
    ids = struct.pack("<II", *done.token_ids)
    assert done.data_hash == hashlib.sha256(struct.pack("<QQ", 65, 66) + ids).hexdigest()
    assert done.token_ids != [65, 66]


def test_special_tokens_and_unprintable_ids_are_never_allowed() -> None:
    bytes_only = tokenizer()
    constraint = Constraint(bytes_only, of({"type": "string"}))
    constraint.accept(ord('"'))
    allowed = np.flatnonzero(constraint.allowed())
    assert len(allowed) > 100
    assert not set(allowed) & (bytes_only.eos_ids | {BOS} | set(range(258, 512)))


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ('^[^"]$', r'"\""', False),
        ('^[^"]$', r'"\\"', True),
        (r"^[^\\]$", r'"\\"', False),
        (r"^[^\\]$", r'"\n"', True),
        (r"^[^\x20-\x7e]$", r'"\""', False),
        ("^[^a]$", r'"\""', True),
    ],
)
def test_escaped_characters_meet_the_pattern(pattern: str, text: str, fits: bool) -> None:
    constraint = Constraint(tokenizer(), of({"type": "string", "pattern": pattern}))
    for byte in text.encode():
        if not constraint.allows(byte):
            break
        constraint.accept(byte)
    assert constraint.allows(EOS) is fits


# -- what is refused


def test_what_is_no_schema() -> None:
    with pytest.raises(RequestError, match="response_format: wanted a schema that can be followed"):
        Constraint(tokenizer(), of({"type": "bogus"}))


def test_a_rack_without_all_logits() -> None:
    model = compiled(top_k=4)
    want = "response_format: wanted free text: this rack returns only some logits, got a schema"
    assert refusal(model=model) == want
    params = SamplingParams(grammar=of(ANY_OBJECT))
    check_request(model, tokenizer(), [BOS], params, executor="timing")  # needs none


def test_it_says_itself_where_it_ends() -> None:
    want = "wanted none with a response_format, which says itself where it ends, got "
    assert refusal(min_tokens=3) == f"min_tokens: {want}3"
    assert refusal(ignore_eos=True) == f"ignore_eos: {want}True"


def test_a_model_without_an_end() -> None:
    endless = load_tokenizer(None, 257, None, [])
    with pytest.raises(RequestError, match="got this model has no end of sequence"):
        Constraint(endless, of(ANY_OBJECT))


def test_a_tokenizer_whose_tokens_have_no_bytes(tmp_path: Path) -> None:
    words = {"<unk>": 0, "</s>": 1, "hello": 2}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(RequestError, match="this model's tokenizer has no bytes for its tokens"):
        Constraint(load_tokenizer(tmp_path, 3, None, [1]), of(ANY_OBJECT))


def test_masks_that_take_too_long_end_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrain, "MASK_SECONDS", -1.0)
    want = "response_format: wanted a schema that takes no more than -1 s of CPU time an answer, "
    with pytest.raises(RequestError, match=want):
        Constraint(tokenizer(), of(ANY_OBJECT)).allowed()
    with pytest.raises(RequestError, match=want):
        Constraint(tokenizer(), of(ANY_OBJECT)).draw(1, 1, hurry=False)


def test_a_schema_that_leads_nowhere_is_the_requests_fault() -> None:
    constraint = Constraint(tokenizer(), of(ANY_OBJECT))
    with pytest.raises(RequestError, match="wanted a schema that can be followed to its end"):
        constraint.accept(ord("x"))
