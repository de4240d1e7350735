"""The published formats of serving traces: which keys tell each, and what a line of it says.

A format is recognised by its header: the first line of a CSV file, the keys of the first object of
JSON Lines, or the bracket of a JSON array. Other keys may stand beside those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from rack.traffic.entry import NS, Call, Entry, Fields

US, MS = 1_000, 1_000_000  # nanoseconds
Counts = Counter[str]
"""What of a trace was passed over, by what it is called in a report."""
FAILED = "requests_without_tokens"
IMAGES = "images"
CACHED = "cached_prompt_tokens"
SHORT = "conversations_of_one_turn"


class Shape(Enum):
    """How a file is written."""

    CSV = "CSV"
    LINES = "JSON Lines"
    ARRAY = "a JSON array"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format: its name, its keys, what a line says. `ignored`: what of it a replay leaves out.

    A `read` adds to the counts; it returns None for an entry that is left out.
    """

    name: str
    shape: Shape
    keys: tuple[str, ...]
    read: Callable[[Fields, Counts, Callable[[str], int]], Entry | None]
    ignored: str | None = None
    timed: bool = True  # entries say when they arrive


def recognise(shape: Shape, keys: set[str]) -> Format | None:
    """Return the format that has these keys, the one with most of its own if several have."""
    found = [one for one in FORMATS if one.shape is shape and keys.issuperset(one.keys)]
    return max(found, key=lambda one: len(one.keys), default=None)


def known() -> str:
    """Return all formats, each with its keys, for an error."""
    return "; ".join(f"{one.name} ({', '.join(one.keys)})" for one in FORMATS)


def _alone(arrival_ns: int, prompt: int, output: int) -> Entry:
    return Entry(
        arrival_ns=arrival_ns, calls=(Call(prompt_tokens=prompt, output_tokens=output),)
    )  # fmt: skip


def _azure(row: Fields, counts: Counts, tokens: Callable[[str], int]) -> Entry:
    return _alone(
        row.moment("TIMESTAMP", NS), row.count("ContextTokens"), row.count("GeneratedTokens")
    )


def _azure_images(row: Fields, counts: Counts, tokens: Callable[[str], int]) -> Entry:
    counts[IMAGES] += row.count("NumImages")
    return _azure(row, counts, tokens)


def _burst(row: Fields, counts: Counts, tokens: Callable[[str], int]) -> Entry:
    return _alone(
        row.ns("Timestamp", NS), row.count("Request tokens"), row.count("Response tokens")
    )


def _vidur(row: Fields, counts: Counts, tokens: Callable[[str], int]) -> Entry:
    return _alone(
        row.ns("arrived_at", NS), row.count("num_prefill_tokens"), row.count("num_decode_tokens")
    )


def _mooncake(row: Fields, counts: Counts, tokens: Callable[[str], int]) -> Entry:
    return _alone(row.ns("timestamp", MS), row.count("input_length"), row.count("output_length"))


def _serving_sim(row: Fields, counts: Counts, tokens: Callable[[str], int]) -> Entry:
    return _alone(row.ns("arrival_time_ns", 1), row.count("input_toks"), row.count("output_toks"))


def _serving_sim_agentic(
    row: Fields, counts: Counts, tokens: Callable[[str], int]
) -> Entry:  # fmt: skip
    """Read a session: a call arrives when the tool that the call before it used is done."""
    session, delay, calls = row.text("session_id"), 0, []
    for number, one in enumerate(row.parts("sub_requests")):
        calls.append(
            Call(
                prompt_tokens=one.count("input_toks"), output_tokens=one.count("output_toks"),
                delay_ns=delay, id=f"{session}/{number}",
            )
        )  # fmt: skip
        delay = one.ns("tool_duration_ns", 1)
    arrival = row.ns("arrival_time_ns", 1)
    return Entry(arrival_ns=arrival, calls=tuple(calls), session=session)


def _copilot(row: Fields, counts: Counts, tokens: Callable[[str], int]) -> Entry | None:
    """Read a session: calls of a turn wait for tools alone, the next turn also for its user.

    A tool's time is as recorded; how long the user took is from what was over last to the next
    turn's first call.
    """
    session, calls, arrival, over = row.text("session_id"), list[Call](), None, 0
    for turn, part in enumerate(row.parts("turns")):
        events = sorted(_events(part), key=lambda event: event[:2])
        delay, first = 0, True
        for at, kind, number, took, event in events:
            if kind == _TOOL:
                delay += took
            else:
                arrival = at if arrival is None else arrival
                if first and calls:
                    delay += max(0, at - delay - over)
                first = False
                used = event.part("tokens")
                counts[CACHED] += used.count("cached")
                calls.append(
                    Call(
                        prompt_tokens=used.count("prompt"), output_tokens=used.count("completion"),
                        delay_ns=delay if calls else 0, id=f"{session}/{turn}.{number}",
                    )
                )  # fmt: skip
                delay = 0
            over = max(over, at + took)
    if arrival is None:
        return Entry(arrival_ns=0, calls=())
    return Entry(arrival_ns=arrival, calls=tuple(calls), session=session)


_TOOL, _CALL = 0, 1  # a tool that is recorded at a call's moment came before it


def _events(turn: Fields) -> Iterator[tuple[int, int, int, int, Fields]]:
    """Yield (begin, kind, number, duration, values) of a turn's calls and tools."""
    for kind, name in ((_TOOL, "tool_batches"), (_CALL, "llm_calls")):
        for number, one in enumerate(turn.parts(name, needed=kind == _CALL)):
            yield one.moment("timestamp", MS), kind, number, one.ns("duration_ms", MS), one


def _share_gpt(row: Fields, counts: Counts, tokens: Callable[[str], int]) -> Entry | None:
    """Read a conversation: its first turn is the prompt, its second the answer."""
    turns = row.parts("conversations")
    if len(turns) < 2:
        counts[SHORT] += 1
        return None
    prompt, answer = (tokens(turn.words("value")) for turn in turns[:2])
    call = Call(prompt_tokens=prompt, output_tokens=answer, id=row.text("id"))
    return Entry(arrival_ns=None, calls=(call,))


FORMATS = (
    Format(
        name="Azure 2023 and 2024", shape=Shape.CSV, read=_azure,
        keys=("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ),
    Format(
        name="Azure 2025, multimodal", shape=Shape.CSV, read=_azure_images,
        keys=("TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens"),
        ignored="images are ignored",
    ),
    Format(
        name="BurstGPT", shape=Shape.CSV, read=_burst,
        keys=("Timestamp", "Model", "Request tokens", "Response tokens"),
    ),
    Format(
        name="Vidur", shape=Shape.CSV, read=_vidur,
        keys=("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    ),
    Format(
        name="Mooncake", shape=Shape.LINES, read=_mooncake,
        keys=("timestamp", "input_length", "output_length"),
        ignored="hash_ids are ignored: every prompt is run whole",
    ),
    Format(
        name="LLMServingSim", shape=Shape.LINES, read=_serving_sim,
        keys=("input_toks", "output_toks", "arrival_time_ns"),
    ),
    Format(
        name="LLMServingSim, agentic", shape=Shape.LINES, read=_serving_sim_agentic,
        keys=("session_id", "arrival_time_ns", "sub_requests"),
    ),
    Format(
        name="Copilot agents", shape=Shape.LINES, read=_copilot, keys=("session_id", "turns"),
        ignored="cached tokens are ignored: every prompt is run whole",
    ),
    Format(
        name="ShareGPT", shape=Shape.ARRAY, read=_share_gpt, keys=("id", "conversations"),
        timed=False,
    ),
)  # fmt: skip
