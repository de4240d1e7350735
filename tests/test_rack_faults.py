"""Law 3: the run checks the schedule. A link that does anything else is refused, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from plain_ops import args
from schedules import WEIGHTS, compiled, ends, machine

from chip.errors import ScheduleViolation
from chip.ops.program import Scheduled
from compiler.ir import LinkUse, ScheduledTransfer
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from interconnect.faults import Drop, Duplicate, Fault, Resize, Shift
from interconnect.frame import Frame
from interconnect.spec import LinkSpec
from rack.machines.hardware import Hardware, SharedEgress
from rack.run.local import LocalRack

STEP = "decode/32"
LAYOUTS = [("2x2+1", "lesson"), ("1x3+2", "groqrack"), ("1x5", "two-ports")]  # the last forwards


@dataclass(frozen=True)
class Place:
    """A link and the first transfer that it carries in a decode step."""

    model: CompiledModel
    link: LinkUse
    transfer: ScheduledTransfer
    receive: Scheduled

    @property
    def chip(self) -> int | str:
        return "host" if self.link.dst == self.model.layout.chips else self.link.dst


@cache
def places(layout: str, hardware: str) -> list[Place]:
    """Links of every sort: host to chip, chip to host, between stages, in a group, forwarding."""
    model = compiled(layout, hardware, kinds="decode")
    schedule = model.steps[STEP]
    found: dict[tuple[bool, ...], Place] = {}
    for link in model.network.links:
        carried = [t for t in schedule.transfers if t.link == link.id]
        if not carried:
            continue
        first = min(carried, key=lambda transfer: transfer.depart)
        (_, send), (_, receive) = ends(schedule, first)
        sort = (
            link.is_host, link.src == model.layout.chips, first.name.startswith("stage"),
            "forward" in args(send), len(carried) > 1,
        )  # fmt: skip
        found.setdefault(sort, Place(model, link, first, receive))
    assert len(found) >= 3
    return list(found.values())


EVERYWHERE = [
    pytest.param(place, id=f"{layout}-{hardware}-{place.link.name}")
    for layout, hardware in LAYOUTS
    for place in places(layout, hardware)
]


@contextmanager
def rack_of(model: CompiledModel, **changes: Any) -> Iterator[LocalRack]:
    rack = LocalRack(model, WEIGHTS, **changes)
    try:
        rack.reset()
        yield rack
    finally:
        rack.close()


def run(rack: LocalRack, steps: int = 1) -> list[int]:
    return [rack.run_step(STEP, [i], [65 + i]).hash_share for i in range(steps)]


def violation(
    place: Place, faults: Sequence[Fault] = (), steps: int = 2, **changes: Any
) -> ScheduleViolation:
    with (
        rack_of(place.model, faults=faults, **changes) as rack,
        pytest.raises(ScheduleViolation) as caught,
    ):
        run(rack, steps)
    return caught.value


def expect(place: Place, error: ScheduleViolation, what: str, wanted: object, got: object) -> None:
    """All fields of a violation that the receiver of the place's first transfer raises."""
    assert (error.what, error.wanted, error.got) == (what, wanted, got)
    assert error.chip == place.chip
    assert error.link == place.link.name
    assert error.cycle == place.receive.start
    assert error.operation == place.transfer.name
    assert error.step == STEP
    who = "host" if place.chip == "host" else f"chip {place.chip}"
    assert str(error) == (
        f"{who}, link {place.link.name}, step {STEP}, cycle {place.receive.start}, "
        f"{place.transfer.name}: {what}: wanted {wanted}, got {got}"
    )


@pytest.mark.parametrize("place", EVERYWHERE)
def test_a_slower_link(place: Place) -> None:
    slot, start = place.link.slot_cycles, place.receive.start
    error = violation(place, slots={place.link.id: 2 * slot}, steps=1)
    expect(place, error, "first vector's arrival", start, start + slot)


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("place", EVERYWHERE[::2])
def test_one_cycle_early_or_late(place: Place, by: int) -> None:
    start = place.receive.start
    if place.transfer.depart + by < 0:
        pytest.skip("a frame cannot leave before cycle 0")
    error = violation(place, [Shift(place.link.id, 1, by)], steps=1)
    expect(place, error, "first vector's arrival", start, start + by)


@pytest.mark.parametrize("to", [0, 319, 321, 640])
@pytest.mark.parametrize("place", EVERYWHERE[::3])
def test_a_payload_of_another_size(place: Place, to: int) -> None:
    size = place.transfer.vectors * 320
    if to == size:
        to += 320
    error = violation(place, [Resize(place.link.id, 1, to)], steps=1)
    expect(place, error, "payload size in bytes", size, to)


@pytest.mark.parametrize("place", EVERYWHERE)
def test_a_lost_frame(place: Place) -> None:
    """Noticed when the next one comes in its place, or when nothing can go on."""
    error = violation(place, [Drop(place.link.id, 1)], steps=1)
    number = place.transfer.id
    if error.what == "vectors did not come":
        wanted = f"{place.transfer.vectors} vectors of transfer {number}"
        expect(place, error, error.what, wanted, "nothing")
    else:
        expect(place, error, "wrong (step number, transfer)", (1, number), error.got)
        assert error.got > (1, number)


@pytest.mark.parametrize("place", EVERYWHERE)
def test_a_frame_that_comes_twice(place: Place) -> None:
    error = violation(place, [Duplicate(place.link.id, 1)], steps=1)
    assert error.link == place.link.name
    assert error.chip == place.chip
    texts = ("a frame came again", "wrong (step number, transfer)", "a frame that nothing takes")
    assert error.what in texts
    assert error.got == (1, place.transfer.id)


def test_the_last_vector_of_several() -> None:
    """A fault in the second half: the first vector is on time, the last is not."""
    model = compiled("2x2+1")
    link = next(link for link in model.network.links if link.src == model.layout.chips)
    slow = {link.id: link.slot_cycles + 1}
    with rack_of(model, slots=slow) as rack, pytest.raises(ScheduleViolation) as caught:
        rack.run_step("prefill8/32", range(8), range(8))
    schedule = model.steps["prefill8/32"]
    first = next(t for t in schedule.transfers if t.link == link.id)
    assert caught.value.wanted == first.first_arrive
    assert caught.value.got == first.first_arrive + 1


def test_a_frame_of_a_link_that_ends_elsewhere() -> None:
    model = compiled("2x2+1")
    link = next(link for link in model.network.links if link.dst == 3)
    frame = Frame(epoch=0, link=link.id, step=1, transfer=7, vectors=1, depart_cycle=5)
    with rack_of(model) as rack, pytest.raises(ScheduleViolation) as caught:
        rack.nodes[2].handle(frame)
    ends_here = sorted(link.id for link in model.network.links if link.dst == 2)
    assert str(caught.value) == (
        f"chip 2, link {link.id}, cycle 5, transfer 7: a frame of a link that does not end here: "
        f"wanted {ends_here}, got {link.id}"
    )


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS)
def test_a_fresh_rack_works_after_a_fault(layout: str, hardware: str) -> None:
    place = places(layout, hardware)[0]
    with rack_of(place.model) as rack:
        wanted = run(rack)
    violation(place, [Shift(place.link.id, 1, 1)], steps=1)
    with rack_of(place.model) as rack:
        assert run(rack) == wanted


def halved(hardware: Hardware) -> Hardware:
    """The same machine with half the rate between chips."""
    link = hardware.chip_link
    if isinstance(link, LinkSpec):
        slower = replace(link, rate_divisor=link.rate_divisor * 2)
    else:
        assert isinstance(link, SharedEgress)
        slower = replace(link, egress_bps=link.egress_bps / 2)
    return replace(hardware, chip_link=slower)


@pytest.mark.parametrize(("layout", "hardware"), LAYOUTS)
def test_behind_the_compilers_back_it_refuses_and_recompiled_it_runs_slower(
    layout: str, hardware: str
) -> None:
    model = compiled(layout, hardware, kinds="decode")
    options = Options(max_model_len=64, prefill_chunk=8, buckets=(32,))
    slower = compile_model(
        model.config, halved(machine(hardware)), parse_layout(layout), options, kinds="decode"
    )
    slots = {link.id: link.slot_cycles for link in slower.network.links}
    assert any(slots[link.id] > link.slot_cycles for link in model.network.links)
    with rack_of(model, slots=slots) as rack, pytest.raises(ScheduleViolation):
        run(rack)
    with rack_of(slower) as rack:
        got = run(rack)
    with rack_of(model) as rack:
        assert run(rack) == got
    assert slower.steps[STEP].cycles > model.steps[STEP].cycles
    assert slower.schedule_hash != model.schedule_hash


def test_a_faster_link_is_refused_too() -> None:
    model = compiled("2x2+1", kinds="decode")
    link = next(link for link in model.network.links if not link.is_host)
    slots = {link.id: link.slot_cycles - 1}
    with rack_of(model, slots=slots) as rack, pytest.raises(ScheduleViolation) as caught:
        run(rack)
    assert caught.value.got == caught.value.wanted - 1
    assert caught.value.link == link.name
