"""`rack.trace`: events as the trace-event format has them, and the schedule's cycles in them."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused
from schedules import compiled

from chip.ops.cost import receive_cycles
from chip.ops.opcodes import Opcode
from chip.ops.program import MOVES
from compiler.pipeline import CompiledModel
from rack.commands.trace import main, request_steps
from rack.reports.trace_events import (
    THREADS,
    Event,
    PlacedStep,
    TraceEvents,
    live_changes,
    tracks,
)
from rack.reports.transfer_names import transfer_names
from rack.run.config import RunConfig
from rack.run.engine import Engine
from rack.run.session import prepare
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams

REQUIRED = {  # by phase, from the format's description; `args` of metadata by its name
    "X": {"ts", "dur", "name", "cat", "args"},
    "s": {"ts", "id", "name", "cat"},
    "f": {"ts", "id", "name", "cat", "bp"},
    "C": {"ts", "name", "args"},
    "M": {"name", "args"},
}
METADATA = {
    "process_name": "name", "process_labels": "labels", "process_sort_index": "sort_index",
    "thread_name": "name", "thread_sort_index": "sort_index",
}  # fmt: skip


def check_format(events: Sequence[Event]) -> None:
    """What viewers take for granted; raises where an event is not one."""
    named: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for event in events:
        assert set(event) == REQUIRED[event["ph"]] | {"ph", "pid", "tid"}, event
        assert event["tid"] // THREADS == event["pid"] + 1 > 0
        assert isinstance(event["name"], str)
        assert event["name"]
        for time in (event.get("ts", 0), event.get("dur", 0)):
            assert time >= 0
            assert Decimal(str(time)).as_tuple().exponent >= -3  # whole nanoseconds
        if event["ph"] == "M":
            assert set(event["args"]) == {METADATA[event["name"]]}
            named[event["name"]].add((event["pid"], event["tid"]))
        if event["ph"] == "C":
            assert all(isinstance(v, int) and v >= 0 for v in event["args"].values())
    slices = [event for event in events if event["ph"] == "X"]
    assert {(s["pid"], s["tid"]) for s in slices} <= named["thread_name"]
    assert {e["pid"] for e in events} == {pid for pid, _ in named["process_name"]}


def nanoseconds(microseconds: float) -> int:
    return int(Decimal(str(microseconds)) * 1000)


def check_flows(events: Sequence[Event], steps: Sequence[PlacedStep], model: CompiledModel) -> None:
    """Each arrow leaves a slice at its source and ends in a slice of the same name at its goal."""
    slices = {(e["tid"], e["ts"], e["name"]): e for e in events if e["ph"] == "X"}
    arrows: dict[int, dict[str, Event]] = defaultdict(dict)
    for event in events:
        if event["ph"] in "sf":
            assert event["ph"] not in arrows[event["id"]], "an arrow with two ends of a kind"
            arrows[event["id"]][event["ph"]] = event
    graph = model.partition.graph
    transfers = [
        (t, base, name)
        for schedule, base in steps
        for t, name in zip(schedule.transfers, transfer_names(graph, schedule), strict=True)
    ]
    assert len(arrows) == len(transfers)
    for number, (transfer, base, name) in enumerate(transfers):
        start, finish = arrows[number]["s"], arrows[number]["f"]
        assert (start["pid"], finish["pid"]) == (transfer.src, transfer.dst)
        assert start["ts"] < finish["ts"]
        out = slices[start["tid"], start["ts"], name]
        into = slices[finish["tid"], finish["ts"], name]
        link = model.network.links[transfer.link]
        wire = transfer.vectors * link.slot_cycles
        for slice_, begin in ((out, transfer.depart), (into, transfer.arrive - wire)):
            assert slice_["args"]["start_cycle"] == base + begin
            assert slice_["args"]["cycles"] == wire
            assert slice_["args"]["link"] == link.name


def check_unit_times(
    events: Sequence[Event], steps: Sequence[PlacedStep], model: CompiledModel
) -> None:
    """Busy and idle of every unit and link add up to the steps' cycles; busy is the schedule's."""
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    lanes: dict[int, list[Event]] = {tid: [] for tid in names}
    for event in events:
        if event["ph"] == "X":
            lanes[event["tid"]].append(event)
    busy: dict[tuple[int, str], int] = defaultdict(int)
    for schedule, _ in steps:
        for program in schedule.programs:
            for op in program.operations:
                for unit in () if op.opcode in MOVES else op.op.units:
                    busy[program.chip, unit] += op.end - op.start
            for begin, end in program.realign:
                busy[program.chip, "ICU"] += end - begin
        for t in schedule.transfers:
            link = model.network.links[t.link]
            busy[t.src, f"{link.name} out"] += t.vectors * link.slot_cycles
            busy[t.dst, f"{link.name} in"] += t.vectors * link.slot_cycles
    end = max(base + schedule.cycles for schedule, base in steps)
    end_ns = end * 10**9 // model.chip.clock_hz
    for tid, lane in lanes.items():
        idle = idle_ns = at = at_ns = 0
        for event in sorted(lane, key=lambda e: (e["ts"], e["args"]["start_cycle"])):
            start, ns = event["args"]["start_cycle"], nanoseconds(event["ts"])
            assert start >= at, f"{names[tid]}: {event['name']} overlaps what is before it"
            assert ns >= at_ns
            assert ns == start * 10**9 // model.chip.clock_hz
            idle, idle_ns = idle + start - at, idle_ns + ns - at_ns
            at, at_ns = start + event["args"]["cycles"], ns + nanoseconds(event["dur"])
        worked = sum(event["args"]["cycles"] for event in lane)
        node = tid // THREADS - 1
        if not names[tid].startswith("step"):
            assert worked == busy.pop((node, names[tid]), 0)
        assert worked + idle + (end - at) == end
        worked_ns = sum(nanoseconds(event["dur"]) for event in lane)
        assert worked_ns + idle_ns + (end_ns - at_ns) == end_ns
    assert not busy, "units that are not in the trace"


def check_counters(events: Sequence[Event], model: CompiledModel) -> None:
    """Nothing is left on a link or in a buffer at the end, and memory is never exceeded."""
    last: dict[tuple[int, str], Event] = {}
    for event in (e for e in events if e["ph"] == "C"):
        before = last.get((event["pid"], event["name"]))
        assert before is None or before["ts"] < event["ts"] or before["args"] != event["args"]
        last[event["pid"], event["name"]] = event
        if event["name"] == "SRAM bytes":
            memory = model.memories[event["pid"]]
            assert event["args"]["constants"] == memory.constant_bytes
            assert event["args"]["live_buffers"] <= memory.buffer_bytes
    assert {pid for pid, name in last if name == "SRAM bytes"} == {
        memory.chip for memory in model.memories
    }
    for (_, name), event in last.items():
        for series in ("live_buffers",) if name == "SRAM bytes" else ("sending", "receiving"):
            assert event["args"][series] == 0


@pytest.mark.parametrize(
    ("layout", "hardware", "dtype"),
    [
        ("1x1", "lesson", "int8"), ("2x2+1", "lesson", "int8"), ("1x3+2", "groqrack", "fp16"),
        ("1x5", "two-ports", "int8"),  # forwards
        ("2x2+1", "stops", "int8"),  # clocks drift, and chips stop to realign them
    ],
)  # fmt: skip
def test_every_step_traced(layout: str, hardware: str, dtype: str) -> None:
    model = compiled(layout, hardware, dtype=dtype)
    steps, base = [], 7
    for schedule in model.steps.values():
        steps.append((schedule, base))
        base += schedule.cycles
    events = [json.loads(json.dumps(event)) for event in TraceEvents(model, steps).events()]
    check_format(events)
    check_flows(events, steps, model)
    check_unit_times(events, steps, model)
    check_counters(events, model)
    whole = [e for e in events if e.get("cat") == "step"]
    assert [(e["name"], e["args"]["cycles"]) for e in whole] == [
        (schedule.name, schedule.cycles) for schedule, _ in steps
    ]


def test_a_transfer_is_named_after_what_made_its_vectors() -> None:
    """The chip has an operation of that name, which ends when the last vector is there."""
    model = compiled("2x2+1", dtype="int8")
    for schedule in model.steps.values():
        names = transfer_names(model.partition.graph, schedule)
        for program in schedule.programs[: model.layout.chips]:
            made = {op.name: op.end for op in program.operations if op.opcode not in MOVES}
            for op in program.operations:
                if op.opcode is Opcode.SEND and op.op.forward is None:
                    name = names[op.op.transfer]
                    assert not name.startswith("layers.") or made[name] <= op.end
    decode = model.steps["decode/64"]
    renamed = {
        t.name: name
        for t, name in zip(
            decode.transfers, transfer_names(model.partition.graph, decode), strict=True
        )
        if t.name != name
    }
    assert renamed == {
        f"layers.{n}.mlp.silu": f"layers.{n}.mlp.gate_up_proj" for n in range(3)
    }  # the product gates


def test_what_is_passed_on_keeps_its_name() -> None:
    model = compiled("1x5", "two-ports")
    schedule = model.steps["decode/64"]
    names = transfer_names(model.partition.graph, schedule)
    passed = [
        op.op for program in schedule.programs for op in program.operations
        if op.opcode is Opcode.SEND and op.op.forward is not None
    ]  # fmt: skip
    assert passed
    assert all(names[one.transfer] == names[one.forward] for one in passed)


def test_pipelined_steps_are_on_tracks_of_their_own() -> None:
    """Chunks of a prompt overlap in the stages, never on a track."""
    config = RunConfig(model="tiny", layout="3x1", max_model_len=64, prefill_chunk=8)
    prepared = prepare(config)
    steps = request_steps(prepared, 30, 2)
    assert any(base < before + one.cycles for (one, before), (_, base) in itertools.pairwise(steps))
    events = [
        json.loads(json.dumps(event)) for event in TraceEvents(prepared.compiled, steps).events()
    ]
    check_format(events)
    check_flows(events, steps, prepared.compiled)
    check_unit_times(events, steps, prepared.compiled)
    tracks_ = {e["tid"] for e in events if e.get("cat") == "step"}
    assert len(tracks_) > 1
    assert tracks([(0, 10), (4, 9), (8, 12), (9, 11), (12, 13)]) == [0, 1, 2, 1, 0]


def test_two_slices_at_once_would_be_noticed() -> None:
    model = compiled()
    steps = [(next(iter(model.steps.values())), 0)]
    events = list(TraceEvents(model, steps).events())
    busy = next(e for e in events if e["ph"] == "X" and e["args"].get("opcode") == "matmul")
    busy["args"]["cycles"] += 10_000
    with pytest.raises(AssertionError):
        check_unit_times(events, steps, model)


def test_live_bytes_of_a_norm_and_its_product() -> None:
    model = compiled()
    program = model.steps["decode/32"].programs[0]
    changes: dict[int, int] = defaultdict(int)
    for cycle, change in live_changes(program, model.memories[0]):
        changes[cycle] += change
    arrived = program.operations[:2]  # RoPE and residual rows come from the host
    assert [op.opcode for op in arrived] == [Opcode.RECEIVE, Opcode.RECEIVE]
    assert changes[arrived[0].start] == 320  # one row of 16 sines and cosines
    assert changes[arrived[1].start] == 320  # 64 fp32
    product = program.operations[2]
    assert product.start == arrived[1].end + receive_cycles(model.chip)
    assert changes[product.start] == 4 * 320  # what its norm gives, the scale, 2 of its own result
    assert sum(changes.values()) == 0


def traced(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    document: dict[str, Any] = json.loads(text)
    return document


def test_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny", "--layout", "2x2+1", "--max-model-len", "64", "-o"]
    paths = [tmp_path / name for name in ("a.json.gz", "b.json.gz", "c.json")]
    for path in paths:
        assert main([*argv, str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    document = traced(paths[0])
    assert document == traced(paths[2])
    assert sorted(document) == ["displayTimeUnit", "otherData", "traceEvents"]
    assert document["displayTimeUnit"] == "ns"
    said = document["otherData"]
    assert said["steps"] == [["decode/64", 0, document["traceEvents"][-1]["args"]["cycles"]]]
    assert (said["layout"], said["clock_hz"], said["hardware"]) == ("2x2+1", 900_000_000, "lesson")
    assert said["weights"].startswith("SYNTHETIC")
    check_format(document["traceEvents"])
    assert f"{len(document['traceEvents']):,} events" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)


def test_the_trace_on_standard_output() -> None:
    command = [sys.executable, "-m", "rack.trace", "tiny", "--layout", "1x1", "-o"]
    outs = [
        subprocess.run([*command, place], stdout=subprocess.PIPE, timeout=60, check=True).stdout
        for place in ("-", "/dev/stdout")
    ]
    assert outs[0] == outs[1]
    check_format(json.loads(outs[0])["traceEvents"])


def test_steps_by_name_follow_one_another(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    argv = ["tiny", "--layout", "1x2", "--max-model-len", "64", "-o", str(out)]
    assert main([*argv, "--step", "prefill16/64", "--step", "decode/64"]) == 0
    (first, zero, cycles), (second, base, _) = traced(out)["otherData"]["steps"]
    assert (first, zero, second, base) == ("prefill16/64", 0, "decode/64", cycles)


def test_a_request_is_what_the_engine_runs(tmp_path: Path) -> None:
    config = RunConfig(model="tiny", layout="1x2", max_model_len=64, prefill_chunk=8)
    prepared = prepare(config)
    steps = request_steps(prepared, 20, 3)
    names = [schedule.name for schedule, _ in steps]
    assert names == ["prefill8/64", "prefill8/64", "prefill8/64"] + ["decode/64"] * 3
    engine = Engine(TimingRack(prepared.compiled), prepared.tokenizer)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    done = engine.generate([0] * 20, params).run()
    last, base = steps[-1]
    assert base + last.cycles == done.prompt_cycles + sum(done.decode_cycles)
    out = tmp_path / "t.json"
    argv = ["tiny", "--layout", "1x2", "--max-model-len", "64", "--prefill-chunk", "8"]
    assert main([*argv, "--prompt-tokens", "20", "--max-tokens", "3", "-o", str(out)]) == 0
    assert [step[0] for step in traced(out)["otherData"]["steps"]] == names


def test_what_cannot_be_traced_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["tiny", "--layout", "1x1", "--max-model-len", "64"]
    out = str(tmp_path / "t.json")
    text = refused(capsys, 1, main, *tiny, "-o", out, "--step", "decode/7")
    assert text.startswith("step: wanted one of decode/64, prefill64/64, ")
    assert text.endswith(", got 'decode/7'")
    text = refused(capsys, 1, main, *tiny, "-o", out, "--prompt-tokens", "64")
    assert text == "prompt: wanted fewer tokens than the context of 64, got 64 tokens"
    text = refused(capsys, 2, main, *tiny)
    assert text == "nothing to write: wanted -o FILE, --png FILE or both"
    text = refused(capsys, 2, main, *tiny, "-o", out, "--max-tokens", "0")
    assert text == "--max-tokens: wanted at least 1, got 0"
    text = refused(capsys, 1, main, *tiny, "-o", out, "--prompt-tokens", "9" * 30)
    assert text == f"prompt: wanted fewer tokens than the context of 64, got {'9' * 30} tokens"
    text = refused(capsys, 2, main, *tiny, "-o", out, "--png", out)
    assert text == f"-o and --png: wanted two places, got {out} twice"
    again = str(Path(out).parent / "." / ".." / Path(out).parent.name / Path(out).name)
    text = refused(capsys, 2, main, *tiny, "-o", out, "--png", again)
    assert text == f"-o and --png: wanted two places, got {again} twice"
    nowhere = tmp_path / "none" / "t.json"
    assert main([*tiny, "-o", str(nowhere)]) == 1
    assert f"error: {nowhere}: wanted a file to write, got " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
