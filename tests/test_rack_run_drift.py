"""Clocks that drift: the slack in a schedule suffices, and a run without it is refused by name."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from schedules import WEIGHTS, check, compiled, machine

from chip.errors import ScheduleViolation
from compiler.analyse import analyse
from compiler.artifact import read_artifact, write_artifact
from compiler.errors import CompilerError, ScheduleError
from compiler.ir import StepSchedule
from compiler.model.frontend import resolve_model
from compiler.model.presets import PRESETS
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from compiler.verify.verifier import verify
from interconnect.clock import MAX_CYCLES, ClockSpec
from rack.errors import RequestError
from rack.machines.hardware import Hardware
from rack.run.drift import DriftingClocks
from rack.run.local import LocalRack
from rack.run.timing_rack import TimingRack

DRIFTING = "groqrack-drift"
STEPS = 100_000
EXTREMES = {  # physical slot -> ppm
    "as drawn": {},
    "every other": {slot: 50 if slot % 2 else -50 for slot in range(72)},
    "root fast": {slot: -50 if slot == 0 else 50 for slot in range(72)},
    "root slow": {slot: 50 if slot == 0 else -50 for slot in range(72)},
}


def with_clock(hardware: Hardware, **changes: int) -> Hardware:
    return replace(hardware, clock=replace(hardware.clock, **changes))


def model_of(folder: Path, hardware: Hardware, layout: str) -> CompiledModel:
    return compile_model(
        resolve_model(str(folder), None, 0).config, hardware, parse_layout(layout),
        Options(max_model_len=256), kinds="decode",
    )  # fmt: skip


def without_slack(model: CompiledModel, hardware: Hardware) -> CompiledModel:
    """The same machine's schedule made for exact clocks, to be run on those that drift."""
    exact = with_clock(hardware, drift_ppm=0, jitter_mcycles=0)
    bare = compile_model(
        model.config, exact, model.layout, Options(max_model_len=model.max_model_len),
        kinds="decode",
    )  # fmt: skip
    network = replace(bare.network, clock=model.network.clock, sync=model.network.sync)
    return replace(bare, network=network)


@pytest.mark.parametrize("drifts", EXTREMES.values(), ids=EXTREMES.keys())
def test_the_slack_suffices_for_100_000_steps(stories260k: Path, drifts: dict[int, int]) -> None:
    model = model_of(stories260k, machine(DRIFTING), "1x4+2")
    slack = {link.slack_cycles for link in model.network.links}
    assert slack == {19, 30, 31, 41}  # 8 for the clocks, 11 a flight and a hop of the counter
    rack = TimingRack(model, drifts)
    step = model.steps["decode/256"]
    assert rack.run_steps(step.name, STEPS) == STEPS * step.cycles
    assert rack.run_step(step.name, [0], [1]).cycles == step.cycles


@pytest.mark.parametrize("layout", ["1x4+2", "5x1+1"])
def test_without_slack_the_first_vector_outside_its_window_is_named(
    stories260k: Path, layout: str
) -> None:
    hardware = machine(DRIFTING)
    bare = without_slack(model_of(stories260k, hardware, layout), hardware)
    with pytest.raises(ScheduleViolation) as caught:
        TimingRack(bare, EXTREMES["every other"]).run_steps("decode/256", STEPS)
    found = caught.value
    assert found.link is not None
    assert found.step == "decode/256"
    assert "vector's arrival: wanted (" in str(found)
    assert str(pickle.loads(pickle.dumps(found))) == str(found)
    with pytest.raises(ScheduleError, match=r"link .*: a vector may come \d+\.\d\d cycles late"):
        check_clocked(bare, bare.steps["decode/256"])


def test_the_same_clocks_every_time(stories260k: Path) -> None:
    hardware = machine(DRIFTING)
    bare = without_slack(model_of(stories260k, hardware, "1x4+2"), hardware)
    said = []
    for _ in range(2):
        with pytest.raises(ScheduleViolation) as caught:
            TimingRack(bare).run_steps("decode/256", 50)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("layout", ["1x1", "2x2+1", "3x1+1"])
def test_stops_in_mid_step(layout: str) -> None:
    model = compiled(layout, "stops")
    assert any(program.realign for step in model.steps.values() for program in step.programs)
    most = model.network.clock.drift_ppm
    for drifts in ({}, {slot: most if slot % 2 else -most for slot in range(8)}):
        clocks, base = DriftingClocks(model, drifts), 0
        for step in model.steps.values():
            base = clocks.run(step, base, 300)
            found = analyse(model, step)
            assert sum(found.parts.values()) == step.cycles
            assert min(found.parts.values()) >= 0


def stopping(
    layout: str = "2x2+1", name: str = "decode/32"
) -> tuple[CompiledModel, StepSchedule, int]:
    """A model whose step stops, and a chip that does."""
    model = compiled(layout, "stops")
    step = model.steps[name]
    return model, step, next(p.chip for p in step.programs if p.realign)


def with_stops(step: StepSchedule, chip: int, stops: tuple[tuple[int, int], ...]) -> StepSchedule:
    programs = list(step.programs)
    programs[chip] = replace(programs[chip], realign=stops)
    return replace(step, programs=tuple(programs))


def check_clocked(model: CompiledModel, step: StepSchedule) -> None:
    network = model.network
    verify([(step, 0)], model.costs, network.links, model.memories, network.clock, network.sync)


def test_the_verifier_sees_stops_that_are_wrong() -> None:
    model, step, chip = stopping("1x2", "prefill8/64")
    check_clocked(model, step)
    stops = step.programs[chip].realign
    *before, (begin, end) = stops
    for wrong, text in (
        (stops[1:], "the counter was last realigned at "),
        ((*before, (begin, begin + 1)), " to realign its counter, which takes "),
        ((*before, (begin + 1, end + 1)), " while the chip realigns its counter from "),
        ((*before, (begin - 1, end)), " while the chip realigns its counter from "),
    ):
        with pytest.raises(ScheduleError, match=text):
            check_clocked(model, with_stops(step, chip, wrong))
    plain = compiled("1x1")
    stops_for_nothing = with_stops(plain.steps["decode/32"], 0, ((5, 9),))
    with pytest.raises(ScheduleError, match="to realign clocks that do not stray"):
        check(plain, stops_for_nothing)


def test_a_stop_that_is_too_short_is_seen_by_the_run() -> None:
    model, step, _ = stopping("2x2+1")
    chip = next(p.chip for p in step.programs[1:] if p.realign)  # the root is never off itself
    *before, (_, end) = step.programs[chip].realign
    cut = with_stops(step, chip, (*before, (end, end)))
    most = model.network.clock.drift_ppm
    clocks = DriftingClocks(model, {slot: most if slot == chip else -most for slot in range(5)})
    with pytest.raises(ScheduleViolation, match="RUNTIME_DESKEW: the counter cannot be realigned"):
        clocks.run(cut, 0, 200)


def test_the_data_are_those_of_exact_clocks() -> None:
    """Chips run the schedule with its slack and stops: same logits, other cycles."""
    shares, cycles = [], []
    for hardware in ("groqrack", DRIFTING, "stops"):
        rack = LocalRack(compiled("2x2+1", hardware), WEIGHTS)
        try:
            rack.reset()
            results = [rack.run_step("decode/32", [i], [40 + i]) for i in range(2)]
        finally:
            rack.close()
        shares.append([result.hash_share for result in results])
        cycles.append(results[0].cycles)
    assert shares[0] == shares[1] == shares[2]
    assert cycles[0] < min(cycles[1:])


def test_an_artifact_keeps_clocks_and_stops(tmp_path: Path) -> None:
    model = compiled("2x2+1", "stops")
    images = ((chip, [memoryview(b"")]) for chip in range(model.layout.chips))
    write_artifact(tmp_path / "a", model, images, {})
    again, _ = read_artifact(tmp_path / "a", machine("stops"))
    assert again.network == model.network
    assert again.steps == model.steps
    assert again.schedule_hash == model.schedule_hash


def test_something_longer_than_the_interval_is_refused() -> None:
    hardware = with_clock(machine(DRIFTING), realign_cycles=200)
    with pytest.raises(CompilerError, match=r"clock.realign_cycles: chip 0 has something that"):
        compile_model(PRESETS["tiny"], hardware, parse_layout("1x1"), Options(max_model_len=64))


def test_the_chunk_is_what_passes_a_link_in_one_go() -> None:
    chunks = []
    for realign in (4096, 65_536):
        hardware = with_clock(machine(DRIFTING), realign_cycles=realign)
        config = replace(PRESETS["tiny"], hidden_size=1024)
        options = Options(max_model_len=128)
        model = compile_model(config, hardware, parse_layout("1x2"), options, kinds="decode")
        chunks.append(model.prefill_chunk)
    assert chunks == [16, 128]


def test_a_run_too_long_to_count_is_refused() -> None:
    model = compiled("1x1", DRIFTING)
    with pytest.raises(RequestError, match="steps: wanted a run of at most"):
        DriftingClocks(model).run(model.steps["decode/32"], MAX_CYCLES)


def test_exact_clocks_change_nothing() -> None:
    spread = with_clock(machine("groqrack"), latency_sigma_mcycles=2800)
    assert not spread.clock.strays
    plain = compiled("2x2+1", "groqrack")
    assert plain.network.sync == ()
    assert {link.rx_window_cycles for link in plain.network.links} == {0}
    model = compile_model(PRESETS["tiny"], spread, parse_layout("2x2+1"), Options(max_model_len=64))
    latencies = {link.latency_cycles for link in model.network.links if not link.is_host}
    assert len(latencies) > 2
    assert {link.rx_window_cycles for link in model.network.links} == {0}
    assert isinstance(model.network.clock, ClockSpec)


def test_a_request_s_first_step_has_its_start() -> None:
    """One epoch in a node: the first step begins and is counted so much later, the next is not."""
    model = compiled("1x3", DRIFTING, kinds="decode")
    assert model.network.start_cycles == 252
    cycles = model.steps["decode/32"].cycles
    timing, rack = TimingRack(model), LocalRack(model, WEIGHTS)
    try:
        for one in (timing, rack):
            for _ in range(2):
                one.reset()
                got = [one.run_step("decode/32", [n], [1]).cycles for n in range(2)]
                assert got == [252 + cycles, cycles]
        assert timing.turns.base == rack.turns.base == 252 + 2 * cycles
    finally:
        rack.close()
    assert compiled("1x3", "groqrack", kinds="decode").network.start_cycles == 0
