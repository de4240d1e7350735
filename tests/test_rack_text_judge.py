"""Grammars from strangers: each is taken or refused, in bounded time and memory."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from rack_kit import tokenizer

from rack.errors import RequestError
from rack.system.ending import SIGNALS
from rack.text.constrain import Words
from rack.text.grammar import Grammar, json_grammar
from rack.text.judge import Judge, JudgeError, Limits, heaviest
from rack.text.tokenizer import load_tokenizer
from rack.text.tools import LLAMA, Tool, Tools

ENDLESS = {"type": "integer", "multipleOf": 62_615_533}
DEADLINE_SECONDS = 60.0


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    one = Judge(Words.of(tokenizer()))
    yield one
    one.close()


def of(schema: dict[str, Any]) -> Grammar:
    return json_grammar(schema, "response_format")


def refusal(judge: Judge, grammar: Grammar) -> RequestError:
    with pytest.raises(RequestError) as caught:
        judge.check(grammar)
    return caught.value


def test_what_is_fine(judge: Judge) -> None:
    judge.check(of({"type": "object", "properties": {"a": {"type": "string"}}}))
    judge.check(of({"type": "integer", "multipleOf": 7}))


def test_what_takes_too_much_is_refused_by_its_keyword(judge: Judge) -> None:
    assert str(refusal(judge, of({"properties": {"a": ENDLESS}}))) == (
        "response_format: wanted a JSON schema that can be compiled in 2 s of CPU time and 128 "
        "MiB, got one that takes more; its multipleOf may be the cause (62615533)"
    )
    judge.check(of({"type": "integer"}))  # by the same process


def test_signals_to_the_whole_group_are_the_parent_s_to_act_on(judge: Judge) -> None:
    judge.check(of({"type": "integer"}))
    assert judge._process is not None
    process = judge._process
    for one in SIGNALS:
        os.kill(process.pid, one)
    judge.check(of({"type": "string", "maxLength": 3}))
    assert judge._process is process


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "bogus"}, "Invalid type: bogus"),
        ({"enum": []}, "Unsatisfiable schema: anyOf is empty"),
        ({"$ref": "http://example.com/schema"}, "does not fetch"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"$ref": "#"}, "a schema that no value meets"),
        ({"const": 10**400}, "number out of range"),
        ({"minimum": 10**400}, "got minimum 1000000000"),
        ({"items": {"const": 2**64}}, "const 18446744073709551616, which is rounded"),
        ({"enum": [1, {"a": [2**53 + 1]}]}, "enum 9007199254740993, which is rounded"),
        ({"type": "integer", "minimum": 10**30, "maximum": 10**30 + 1},
         "minimum 1000000000000000000000000000000, which is rounded"),
        ({"type": "integer", "minimum": 1e20, "maximum": 1e21}, "minimum 100000000000000000000,"),
        ({"type": "integer", "exclusiveMaximum": -(2**63) - 1},
         "exclusiveMaximum -9223372036854775809, which is rounded"),
        ({"type": "number", "minimum": 2**53 + 1, "maximum": 2**53 + 1},
         "minimum 9007199254740993, which is rounded"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused(
    judge: Judge, schema: dict[str, Any], message: str
) -> None:
    error = str(refusal(judge, of(schema)))
    assert error.startswith("response_format: wanted a JSON schema that can be kept to, got ")
    assert message in error
    assert "\n" not in error
    assert len(error) < 500


def test_the_tool_at_fault_is_named(judge: Judge) -> None:
    def tools(second: dict[str, Any]) -> Grammar:
        good = Tool(name="f", parameters={"type": "object"}, param="tools[0].function.parameters")
        bad = Tool(name="g", parameters=second, param="tools[1].function.parameters")
        return Tools(offered=(good, bad)).grammar(LLAMA)

    bogus = refusal(judge, tools({"properties": {"a": {"type": "bogus"}}}))
    assert (bogus.param, bogus.got) == ("tools[1].function.parameters", "Invalid type: bogus")
    endless = refusal(judge, tools({"properties": {"a": ENDLESS}}))
    assert endless.param == "tools[1].function.parameters"


def test_memory_is_bounded() -> None:
    judge = Judge(Words.of(tokenizer()), Limits(cpu_seconds=60, memory_bytes=16 << 20))
    try:
        assert "16 MiB" in refusal(judge, of(ENDLESS)).wanted
    finally:
        judge.close()


def test_a_check_can_be_cancelled_and_leaves_nothing() -> None:
    judge = Judge(Words.of(tokenizer()), Limits(cpu_seconds=600, memory_bytes=8 << 30))
    judge.check(of({"type": "integer"}))
    judge.cancel()  # nothing runs
    found: list[BaseException] = []

    def check() -> None:
        try:
            judge.check(of(ENDLESS))
        except JudgeError as error:
            found.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    try:
        assert judge._process is not None
        process = psutil.Process(judge._process.pid)
        while not (children := process.children()) and thread.is_alive():
            pass
        judge.cancel()
        thread.join(DEADLINE_SECONDS)
        assert [str(error) for error in found] == ["stopped"]
        assert not psutil.wait_procs(children, DEADLINE_SECONDS)[1]
        judge.check(of({"type": "integer"}))
    finally:
        judge.close()
    assert not process.is_running()


def test_a_judge_that_was_killed_is_started_again(judge: Judge) -> None:
    judge.check(of({"type": "integer"}))
    assert judge._process is not None
    judge._process.kill()
    judge._process.wait()
    judge.cancel()
    with pytest.raises(JudgeError, match="the process that judges schemas has ended"):
        judge.check(of({"type": "integer"}))
    judge.check(of({"type": "integer"}))


def test_a_tokenizer_without_an_end() -> None:
    judge = Judge(Words.of(load_tokenizer(None, 257, None, [])))
    try:
        error = refusal(judge, of({"type": "integer"}))
        assert error.got == "this model has no end of sequence"
    finally:
        judge.close()


def explosion(key: str) -> dict[str, Any]:
    defs: dict[str, Any] = {f"a{n}": {key: [{"$ref": f"#/$defs/a{n + 1}"}] * 4} for n in range(12)}
    defs["a12"] = {"type": "object", "properties": {"x": {"type": "integer"}}}
    return {"$defs": defs, "$ref": "#/$defs/a0"}


HOSTILE: dict[str, dict[str, Any]] = {
    "several multipleOf": {
        "allOf": [{"type": "integer", "multipleOf": p} for p in (10_007, 10_009, 10_037)]
    },
    "long strings": {"type": "string", "minLength": 4_000_000_000, "maxLength": 10**18},
    "long lists": {"type": "array", "minItems": 4_000_000_000},
    "pattern of repeats": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
    "pattern of many": {"type": "string", "pattern": "^(a|b)*x{10000}$"},
    "pattern of states": {"type": "string", "pattern": "^(a|b)*a(a|b){30}$"},
    "patterns together": {
        "allOf": [{"type": "string", "pattern": f"^(.*a){{{n}}}.*$"} for n in range(1, 20)]
    },
    "unicode": {"type": "string", "pattern": "^\\p{L}{1,500}\\p{N}{1,500}$"},
    "properties": {"type": "object", "properties": {f"p{n}": {} for n in range(10_000)}},
    "required": {
        "type": "object",
        "properties": {f"p{n}": {"type": "integer"} for n in range(10_000)},
        "required": [f"p{n}" for n in range(10_000)],
    },
    "enum": {"enum": [f"value{n}" for n in range(100_000)]},
    "enum of objects": {"enum": [{"a": n} for n in range(10_000)]},
    "any of many": {"anyOf": [{"required": [f"p{n}"], "type": "object"} for n in range(10_000)]},
    "allOf": explosion("allOf"),
    "anyOf": explosion("anyOf"),
    "oneOf": explosion("oneOf"),
    "to itself": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "range": {"type": "number", "minimum": 0.1234567890123456, "maximum": 0.1234567890123457},
}


@pytest.fixture(scope="module")
def hasty() -> Iterator[Judge]:
    one = Judge(Words.of(tokenizer()), Limits(cpu_seconds=0.3))
    yield one
    one.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_bounded(hasty: Judge, name: str) -> None:
    """Whatever comes of it, it comes: the limits are the kernel's."""
    with contextlib.suppress(RequestError):
        hasty.check(of(HOSTILE[name]))
    hasty.check(of({"type": "integer"}))


def test_the_heaviest_keyword() -> None:
    assert heaviest({"properties": {"a": {"multipleOf": 12345}}}) == ("multipleOf", 12345)
    assert heaviest({"multipleOf": 0.00123}) == ("multipleOf", 123)
    assert heaviest({"pattern": "a{10,2000}"}) == ("pattern", 10 + 2010)
    assert heaviest({"items": [{"enum": [1, 2, 3]}]}) == ("enum", 3)
    assert heaviest({"items": {"items": {}}}) == ("nesting", 3)
