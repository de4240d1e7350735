"""Traces of every published format: what they say, in what order, and what is refused."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from rack_kit import tokenizer

from rack.errors import ConfigError, TraceError
from rack.traffic import lines
from rack.traffic import trace as traces
from rack.traffic.formats import CACHED, FAILED, IMAGES, SHORT, known
from rack.traffic.request import Request
from rack.traffic.trace import open_trace

TRACES = Path(__file__).resolve().parent / "traces"
Row = tuple[str, float, int, int]


TOKENIZER = tokenizer()


def tokens(text: str) -> int:
    return len(TOKENIZER.encode(text))


def read(
    path: Path | str, *, rate: float | None = None, **options: float
) -> tuple[list[Request], Counter[str]]:
    counts = Counter[str]()
    trace = open_trace(str(path), tokens, rate=rate, seed=3)
    limit = options.get("limit")
    return list(
        trace.requests(
            counts, scale=options.get("scale", 1.0), limit=None if limit is None else int(limit)
        )
    ), counts


FOUND: dict[str, tuple[str, list[Row], dict[str, int]]] = {
    "azure-2023.csv": (
        "Azure 2023 and 2024",
        [("0", 0.0, 20, 5), ("1", 2e-7, 30, 1), ("2", 4.314579, 12, 7)],
        {},
    ),
    "azure-2024.csv": (
        "Azure 2023 and 2024",
        [("0", 0.0, 20, 5), ("1", 0.007405, 30, 1), ("2", 0.99007, 12, 7)],
        {},
    ),
    "azure-2025.csv": (
        "Azure 2025, multimodal",
        [("0", 0.0, 20, 5), ("1", 0.1, 30, 4)],
        {IMAGES: 3, FAILED: 1},
    ),
    "mooncake.jsonl": (
        "Mooncake", [("0", 0.0, 40, 5), ("1", 3.0, 30, 4), ("2", 3.0, 600, 2)], {}
    ),
    "burstgpt.csv": ("BurstGPT", [("0", 0.0, 47, 18), ("1", 113.0, 12, 4)], {FAILED: 1}),
    "burstgpt-1.2.csv": ("BurstGPT", [("0", 0.0, 47, 18), ("1", 112.75, 12, 4)], {FAILED: 1}),
    "servingsim.jsonl": ("LLMServingSim", [("0", 0.0, 10, 7), ("1", 0.100000001, 12, 3)], {}),
    "servingsim-agentic.jsonl": (
        "LLMServingSim, agentic",
        [("s0/0", 0.0, 10, 3), ("s0/1", 0.0, 20, 2), ("s0/2", 0.0, 30, 2), ("s1/0", 2e-6, 11, 4)],
        {},
    ),
    "vidur.csv": ("Vidur", [("0", 0.0, 20, 5), ("1", 0.185421, 30, 6)], {}),
    "copilot.jsonl": (
        "Copilot agents",
        [
            ("early/0.0", 0.0, 9, 2), ("late/0.0", 2.0, 20, 3), ("late/0.1", 2.0, 30, 4),
            ("late/1.0", 2.0, 40, 2),
        ],
        {CACHED: 50},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_every_format_is_recognised_and_read(name: str) -> None:
    what, rows, passed_over = FOUND[name]
    assert open_trace(str(TRACES / name), tokens).format.name == what
    requests, counts = read(TRACES / name)
    found = [(one.id, one.arrival_s, one.prompt_tokens, one.output_tokens) for one in requests]
    assert found == rows
    assert [one.number for one in requests] == list(range(len(rows)))
    assert +counts == passed_over


def test_every_sample_is_of_a_format_and_every_format_has_one() -> None:
    found = {open_trace(str(path), tokens).format.name for path in TRACES.iterdir()}
    assert found == {one.partition(" (")[0] for one in known().split("; ")}
    assert {path.name for path in TRACES.iterdir()} == {*FOUND, "sharegpt.json"}


def test_calls_of_a_session_follow_each_other() -> None:
    requests, _ = read(TRACES / "servingsim-agentic.jsonl")
    assert [(one.session, one.after, one.delay_s) for one in requests] == [
        ("s0", None, 0.0), ("s0", 0, 0.0005), ("s0", 1, 0.0), ("s1", None, 0.0),
    ]  # fmt: skip
    requests, _ = read(TRACES / "copilot.jsonl")
    assert [(one.after, one.delay_s) for one in requests] == [
        (None, 0.0), (None, 0.0), (1, 0.25), (2, 10.0),  # a tool; then the user, who read for 10 s
    ]  # fmt: skip


def test_a_call_without_tokens_is_passed_over_and_its_delay_is_not(tmp_path: Path) -> None:
    calls = [(5, 1, 100), (0, 1, 20), (5, 0, 3), (7, 2, 0)]
    entry = {
        "session_id": 7, "arrival_time_ns": 50,
        "sub_requests": [
            {"input_toks": a, "output_toks": b, "tool_duration_ns": c} for a, b, c in calls
        ],
    }  # fmt: skip
    path = tmp_path / "trace"
    path.write_text(json.dumps(entry))
    requests, counts = read(path)
    assert [(one.id, one.after, one.delay_s) for one in requests] == [
        ("7/0", None, 0.0), ("7/3", 0, 123e-9),
    ]  # fmt: skip
    assert counts[FAILED] == 2


def test_share_gpt_is_counted_by_the_tokenizer_and_arrives_by_chance() -> None:
    path = TRACES / "sharegpt.json"
    requests, counts = read(path, rate=4.0)
    assert [(one.id, one.prompt_tokens, one.output_tokens) for one in requests] == [
        ("a_0", tokens("Say hello"), tokens("Hello!")), ("c_0", tokens('Grüße ["}]'), tokens("x")),
    ]  # fmt: skip
    assert counts == {SHORT: 1}
    assert requests[0].arrival_s == 0
    assert requests[1].arrival_s > 0
    assert read(path, rate=4.0)[0] == requests
    twice = read(path, rate=8.0)[0]
    assert twice[1].arrival_s == pytest.approx(requests[1].arrival_s / 2)


def test_drawn_arrivals_have_the_rate(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([{"id": str(n), "conversations": turns} for n in range(4000)]))
    requests, _ = read(path, rate=5.0)
    gaps = [b.arrival_s - a.arrival_s for a, b in pairwise(requests)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 5, rel=0.05)
    assert sum(gap * gap for gap in gaps) / len(gaps) == pytest.approx(2 * mean**2, rel=0.1)


def test_rate_scale_leaves_tools_alone() -> None:
    plain, _ = read(TRACES / "servingsim-agentic.jsonl")
    fast, _ = read(TRACES / "servingsim-agentic.jsonl", scale=4.0)
    assert fast == [replace(one, arrival_s=one.arrival_s / 4) for one in plain]


def test_a_limit_is_of_requests_in_order() -> None:
    every, _ = read(TRACES / "copilot.jsonl")
    assert read(TRACES / "copilot.jsonl", limit=2)[0] == every[:2]


def test_entries_a_little_out_of_order_are_sorted(tmp_path: Path) -> None:
    rng = random.Random(1)
    times = list(range(2000))
    rng.shuffle(times)
    path = tmp_path / "trace.csv"
    body = "".join(f"{time},{time + 1},2\n" for time in times)
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + body)
    requests, _ = read(path)
    assert [one.arrival_s for one in requests] == list(range(2000))
    assert [one.prompt_tokens for one in requests] == list(range(1, 2001))


def test_one_far_from_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "WINDOW", 100)
    path = tmp_path / "trace.csv"
    body = "".join(f"{time + 10},1,2\n" for time in range(101))
    path.write_text(f"arrived_at,num_prefill_tokens,num_decode_tokens\n{body}9.5,1,2\n")
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: line 103: wanted entries by their arrival, to within 100 places, got "
        "one that came 0.5 s before one in front of it"
    )


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "WINDOW", 1000)
    path = tmp_path / "trace.csv"
    with path.open("w") as file:
        file.write("arrived_at,num_prefill_tokens,num_decode_tokens\n")
        file.writelines(f"{n},5,2\n" for n in range(8000))
    trace, most = open_trace(str(path), tokens), []
    for limit in (1, None):
        tracemalloc.start()
        count = sum(1 for _ in trace.requests(Counter(), limit=limit))
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == (limit or 8000)
    assert most[1] < 1.1 * most[0]


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n\n"
MOON = '{"timestamp": 0, "input_length": 6758, "output_length": 500}\n'
CHAT = '[{"id": "a", "conversations": []},\n'
COUNT = "a whole number up to 1,073,741,824"
SESSION = '{"session_id": "s", "arrival_time_ns": 0, "sub_requests": []}\n'
AGENT = '{"session_id": "s", "turns": []}\n'
MALFORMED = [
    (HEAD + "2023-11-16 18:15:47,x,4\n", 4, f"ContextTokens: wanted {COUNT}, got 'x'"),
    (HEAD + "2023-11-16 18:15:47,-1,4\n", 4, f"ContextTokens: wanted {COUNT}, got '-1'"),
    (HEAD + "2023-11-16 18:15:47,1.5,4\n", 4, f"ContextTokens: wanted {COUNT}, got '1.5'"),
    (HEAD + "2023-11-16 18:15:47,4\n", 4, "wanted 3 columns, got 2"),
    (HEAD + "2023-11-16 18:15:47,4,5,6\n", 4, "wanted 3 columns, got 4"),
    (HEAD + "yesterday,4,5\n", 4,
     "TIMESTAMP: wanted a date and time, or a number, got 'yesterday'"),
    (HEAD + "2023-02-30 18:15:47,4,5\n", 4,
     "TIMESTAMP: wanted a date and time, got '2023-02-30 18:15:47'"),
    (HEAD + '"2023,4,5\n', 4, "wanted a row of CSV, got unexpected end of data"),
    (HEAD.replace("Tokens\n", "Tokens,ContextTokens\n"), 1,
     "wanted each column once, got ContextTokens 2 times"),
    ("arrived_at,num_prefill_tokens,num_decode_tokens\n5e9,1,1\n", 2,
     "arrived_at: wanted a number up to 4.61169e+09, got '5e9'"),
    (MOON + MOON + '{"timestamp": 0, "input_length": 1}', 3,
     f"output_length: wanted {COUNT}, got nothing"),
    (MOON + '{"timestamp": -1, "input_length": 1, "output_length": 1}', 2,
     "timestamp: wanted a number from 0 on, got -1"),
    (MOON + '{"timestamp": NaN, "input_length": 1, "output_length": 1}', 2,
     "timestamp: wanted a number from 0 on, got nan"),
    (MOON + '{"timestamp": 0, "input_length": true, "output_length": 1}', 2,
     f"input_length: wanted {COUNT}, got True"),
    (MOON + "{", 2, "wanted valid JSON, got Expecting property name enclosed in double quotes at "
     "column 2"),
    (MOON + "[1]", 2, "wanted a JSON object, got [1]"),
    (MOON + '{"a":' + "[" * 100_000, 2, "wanted valid JSON, got values nested too deeply"),
    (SESSION + '{"session_id": "s", "arrival_time_ns": 0, "sub_requests": [3]}', 2,
     "sub_requests: wanted a list of objects, got [3]"),
    (SESSION + '{"session_id": null, "arrival_time_ns": 0, "sub_requests": []}', 2,
     "session_id: wanted a text, got None"),
    (SESSION + '{"session_id": "s", "arrival_time_ns": 0, "sub_requests": '
     '[{"input_toks": 1, "output_toks": 1}]}', 2,
     "sub_requests[0].tool_duration_ns: wanted a number from 0 on, got nothing"),
    (AGENT + '{"session_id": "s", "turns": [{"llm_calls": [{"timestamp": 1, "duration_ms": 2, '
     '"tokens": 3}]}]}', 2, "turns[0].llm_calls[0].tokens: wanted an object, got 3"),
    (CHAT + "3]", 2, "wanted an object, got '3'"),
    (CHAT, 2, "wanted an object, got the end of the file"),
    ('[\n{"id": "a", "conversations": []} {', 2,
     "wanted a comma or the end of the array, got '{'"),
    (CHAT + '\n{"id":\n ]', 4, "wanted valid JSON, got Expecting value at column 2"),
    (MOON + '{"timestamp": ' + "9" * 5000, 2, "wanted valid JSON, got Exceeds the limit (4300 "
     "digits) for integer string conversion: value has 5000 digits; use "
     "sys.set_int_max_str_digits() to increase the limit"),
    (CHAT + '{"a":' + "[" * 100_000, 2, "wanted valid JSON, got values nested too deeply"),
    (CHAT + '{"id": "b", "conversations": [{"value": 1}, {"value": []}]}]', 2,
     "conversations[1].value: wanted a text, got []"),
    (CHAT + '{"id": "b", "conversations": [{"value": "a\\ud83d"}, {"value": "b"}]}]', 2,
     "conversations[0].value: wanted a text of whole Unicode characters, got 'a\\ud83d'"),
    (CHAT + '{"id": "b", "conversations": []}]\n\n[{"id": "c"}]', 4,
     "wanted nothing behind the array, got '['"),
    ("[]\nmore", 2, "wanted nothing behind the array, got 'm'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "said"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_line_is_refused_by_its_number(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: line {line}: {said}"
    assert caught.value.line == line


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for text in (HEAD.encode() + b"\xff\n", CHAT.encode() + b'{"id": "\xff'):
        path.write_bytes(text)
        with pytest.raises(TraceError, match=r": wanted UTF-8 text, got 'utf-8' codec"):
            read(path)
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert len(read(path)[0]) == 1


def test_a_file_that_the_system_does_not_read() -> None:
    with pytest.raises(ConfigError) as caught:
        open_trace("/proc/self/mem", tokens)
    assert str(caught.value) == "/proc/self/mem: wanted a trace to read, got Input/output error"


def test_a_line_or_an_item_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_BYTES", 1 << 19)
    path = tmp_path / "trace"
    path.write_text(HEAD + "x" * (1 << 20))
    with pytest.raises(TraceError, match=r"line 4: wanted at most 524,288 bytes, got more$"):
        read(path)
    path.write_text(CHAT + '{"id": "' + "x" * (1 << 21))
    wanted = r"line 2: wanted an object of at most 524,288 characters, got more, or invalid JSON$"
    with pytest.raises(TraceError, match=wanted):
        read(path)


def test_items_longer_than_a_block(tmp_path: Path) -> None:
    turns = [{"value": "é" * 700_000}, {"value": "b"}]
    path = tmp_path / "trace"
    path.write_text(json.dumps([{"id": "a", "conversations": turns}] * 2, ensure_ascii=False))
    assert [one.prompt_tokens for one in read(path)[0]] == [tokens("é" * 700_000)] * 2
    path.write_text("[ ]")
    assert read(path)[0] == []


def test_what_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for text, got in (
        ("", "an empty file"),
        ("a,b\n1,2\n", "CSV of 'a, b'"),
        ('{"b": 1, "a": 2}', "JSON Lines of 'a, b'"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: wanted a trace of {known()}, got {got}"
    for odd, why in ((tmp_path / "no", "No such file"), (tmp_path, "it is no regular file")):
        with pytest.raises(ConfigError) as caught:
            read(odd)
        assert str(caught.value).startswith(f"{odd}: wanted a trace to read, got {why}")


def test_a_rate_is_for_a_trace_without_times() -> None:
    with pytest.raises(ConfigError) as caught:
        read(TRACES / "vidur.csv", rate=2.0)
    assert str(caught.value) == (
        "rate: wanted none for a trace that has times (Vidur), got 2; --rate-scale makes it faster"
    )
