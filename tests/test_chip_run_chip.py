"""A chip alone: it waits for data only, checks each arrival, and refuses what it cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ops import args
from schedules import WEIGHTS, compiled

from chip.errors import ProgramError, ScheduleViolation
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Opcode
from chip.ops.program import Scheduled
from chip.run.chip import Arrival, Carry, Chip, StepMessage
from chip.sram import Sram
from rack.run.job import build_chip, chip_job

MODEL = compiled("1x2", kinds="decode")
STEP = "decode/32"
PROGRAM = MODEL.steps[STEP].programs[0]
RECEIVES = [o for o in PROGRAM.operations if o.opcode is Opcode.RECEIVE]
LINKS = {link.id: link.name for link in MODEL.network.links}
Sent = list[tuple[int, int, int, int, int, bytes]]


def chip_and_sent(window: int = 0) -> tuple[Chip, Sent]:
    sent: Sent = []
    job = chip_job(MODEL, 0, WEIGHTS)
    links = tuple(replace(link, rx_window_cycles=window) for link in job.links)
    chip = build_chip(
        replace(job, links=links),
        lambda link, transfer, sequence, cycle, check, payload: sent.append(
            (link, transfer, sequence, cycle, check, bytes(payload))
        ),
    )
    return chip, sent


def message(sequence: int = 1, base: int = 0, rows: int = 1) -> StepMessage:
    return StepMessage(
        sequence=sequence, step=STEP, base_cycle=base, positions=tuple(range(rows)),
        slots=(0,) * rows,
    )  # fmt: skip


def arrival(operation: Scheduled, base: int = 0, **changes: Any) -> Arrival:
    plain = Arrival(
        link=args(operation)["link"], sequence=1, transfer=args(operation)["transfer"],
        first_cycle=base + operation.start, last_cycle=base + operation.end,
        payload=np.ones(args(operation)["vectors"] * 80, np.float32).tobytes(),
    )  # fmt: skip
    return replace(plain, **changes)


def run(chip: Chip, base: int = 0, sequence: int = 1) -> None:
    chip.begin(message(sequence, base))
    for receive in RECEIVES:
        assert not chip.advance()
        assert chip.waiting_for() is receive
        chip.receive(arrival(receive, base, sequence=sequence))
    assert chip.advance()
    assert chip.waiting_for() is None


@pytest.mark.parametrize("base", [0, 1_000_000])
def test_a_step_departs_at_the_chips_own_cycles(base: int) -> None:
    chip, sent = chip_and_sent()
    run(chip, base)
    sends = [o for o in PROGRAM.operations if o.opcode is Opcode.SEND]
    assert [s[:4] for s in sent] == [
        (args(o)["link"], args(o)["transfer"], 1, base + o.start) for o in sends
    ]
    assert [len(s[5]) for s in sent] == [args(o)["vectors"] * 320 for o in sends]
    assert sent[-1][4] != 0  # the result carries this chip's share of the hash
    assert chip.missing() is None


def test_all_that_comes_early_waits_its_turn() -> None:
    one, sent = chip_and_sent()
    run(one)
    two, early = chip_and_sent()
    for receive in RECEIVES:
        two.receive(arrival(receive))
    assert two.advance()  # nothing to do without a step
    two.begin(message())
    assert two.advance()
    assert early == sent


def test_a_step_replayed_gives_the_same() -> None:
    chip, sent = chip_and_sent()
    run(chip, sequence=1)
    run(chip, 1_000_000, sequence=2)
    half = len(sent) // 2
    later = [(link, transfer, cycle + 1_000_000) for link, transfer, _, cycle, *_ in sent[:half]]
    assert [(link, transfer, cycle) for link, transfer, _, cycle, *_ in sent[half:]] == later
    assert sent[half - 1][5] == sent[-1][5]  # the logits (lanes that pad a vector may differ)


def test_a_step_that_begins_before_the_one_before_has_ended() -> None:
    chip, _ = chip_and_sent()
    run(chip)
    chip.begin(message(sequence=2, base=5))
    error = fails(chip, chip.advance)
    assert error.what.endswith("is still held by the step before")
    assert (error.fields()["chip"], error.fields()["step"]) == (0, STEP)
    chip.reset()  # a new request begins at cycle 0 again
    chip.begin(message(sequence=3))
    assert not chip.advance()


def test_a_step_that_is_not_loaded() -> None:
    chip, _ = chip_and_sent()
    with pytest.raises(ProgramError) as caught:
        chip.begin(replace(message(), step="decode/99"))
    assert str(caught.value) == ("chip 0: no program decode/99; loaded: ['decode/32', 'decode/64']")


@pytest.mark.parametrize("rows", [0, 2])
def test_more_rows_than_the_step_has(rows: int) -> None:
    chip, _ = chip_and_sent()
    with pytest.raises(ProgramError) as caught:
        chip.begin(message(rows=rows))
    assert str(caught.value) == f"chip 0, step decode/32: wanted 1 to 1 rows, got {rows}"


def fails(chip: Chip, do: Callable[[], object]) -> ScheduleViolation:
    with pytest.raises(ScheduleViolation) as caught:
        do()
    return caught.value


FIRST = RECEIVES[0]
WRONG = [
    ({"first_cycle": FIRST.start + 1}, "first vector's arrival", FIRST.start, FIRST.start + 1),
    ({"first_cycle": FIRST.start - 1}, "first vector's arrival", FIRST.start, FIRST.start - 1),
    ({"last_cycle": FIRST.end + 1}, "last vector's arrival", FIRST.end, FIRST.end + 1),
    ({"last_cycle": FIRST.end - 1}, "last vector's arrival", FIRST.end, FIRST.end - 1),
    ({"payload": b""}, "payload size in bytes", args(FIRST)["vectors"] * 320, 0),
    ({"transfer": 99}, "wrong (step number, transfer)", (1, args(FIRST)["transfer"]), (1, 99)),
    ({"sequence": 2}, "wrong (step number, transfer)", (1, args(FIRST)["transfer"]),
     (2, args(FIRST)["transfer"])),
]  # fmt: skip


@pytest.mark.parametrize(("change", "what", "wanted", "got"), WRONG)
@pytest.mark.parametrize("base", [0, 5000])
def test_an_arrival_that_is_not_the_schedules(
    change: dict[str, Any], what: str, wanted: object, got: object, base: int
) -> None:
    moved = {k: v + base if k.endswith("cycle") else v for k, v in change.items()}
    chip, _ = chip_and_sent()
    chip.begin(message(base=base))
    chip.receive(arrival(FIRST, base, **moved))
    error = fails(chip, chip.advance)
    assert (error.what, error.wanted, error.got) == (what, wanted, got)
    assert (error.chip, error.link) == (0, LINKS[args(FIRST)["link"]])
    assert (error.cycle, error.operation, error.step) == (FIRST.start, FIRST.name, STEP)


def test_a_receive_window_lets_vectors_come_early_but_not_late() -> None:
    for by, fine in ((-3, True), (0, True), (-4, False), (1, False)):
        chip, _ = chip_and_sent(window=3)
        chip.begin(message())
        early = {"first_cycle": FIRST.start + by, "last_cycle": FIRST.end + by}
        chip.receive(arrival(FIRST, **early))
        if fine:
            assert not chip.advance()
        else:
            error = fails(chip, chip.advance)
            assert error.wanted == (FIRST.start - 3, FIRST.start)


def test_a_frame_that_came_before() -> None:
    chip, _ = chip_and_sent()
    run(chip)
    error = fails(chip, lambda: chip.receive(arrival(RECEIVES[-1])))
    number = args(RECEIVES[-1])["transfer"]
    assert str(error) == (
        f"chip 0, link {LINKS[args(RECEIVES[-1])['link']]}, cycle {RECEIVES[-1].end}, transfer "
        f"{number} of step number 1: a frame came again: wanted one after {(1, number)}, "
        f"got {(1, number)}"
    )


def test_a_frame_that_nothing_takes() -> None:
    """The last frame of a step twice, both there before the chip has looked."""
    chip, _ = chip_and_sent()
    chip.begin(message())
    for receive in (*RECEIVES, RECEIVES[-1]):
        chip.receive(arrival(receive))
    error = fails(chip, chip.advance)
    last = RECEIVES[-1]
    assert str(error) == (
        f"chip 0, link {LINKS[args(last)['link']]}, step {STEP}, cycle {last.end}, transfer "
        f"{args(last)['transfer']}: a frame that nothing takes: wanted none, "
        f"got {(1, args(last)['transfer'])}"
    )


def test_what_is_missing_is_named() -> None:
    chip, _ = chip_and_sent()
    assert chip.missing() is None
    chip.begin(message())
    chip.advance()
    error = chip.missing()
    assert str(error) == (
        f"chip 0, link {LINKS[args(FIRST)['link']]}, step {STEP}, cycle {FIRST.start}, "
        f"{FIRST.name}: vectors did not come: wanted {args(FIRST)['vectors']} vectors of transfer "
        f"{args(FIRST)['transfer']}, got nothing"
    )


def test_a_reset_forgets_the_step_but_not_the_memory() -> None:
    chip, _ = chip_and_sent()
    chip.begin(message())
    chip.receive(arrival(FIRST))
    chip.advance()
    weights = chip.sram.tensor("layers.0.mlp.down_proj").copy()
    chip.reset()
    assert chip.waiting_for() is None
    assert chip.advance()
    assert np.array_equal(chip.sram.tensor("layers.0.mlp.down_proj"), weights)
    run(chip, sequence=2)


def test_a_program_with_other_cycles_is_not_loaded() -> None:
    chip, _ = chip_and_sent()
    operations = list(PROGRAM.operations)
    operations[-1] = replace(operations[-1], start=operations[-1].start + 1)
    error = fails(chip, lambda: chip.load_program(replace(PROGRAM, operations=tuple(operations))))
    assert "the schedule's start is not the chip's own" in str(error)


class Halting:
    """A carrier that leaves some moves to the chip, and lets some vectors come late."""

    def __init__(self, plan: Iterator[int], sent: Sent) -> None:
        self.plan, self.sent = plan, sent
        self.late: list[Arrival] = []
        self.done = 0
        self.last: dict[int, tuple[int, int]] = {}
        self.chip: Chip

    def carries(self, link: int) -> bool:
        return link != RECEIVES[0].op.link  # type: ignore[union-attr]

    def last_taken(self, link: int) -> tuple[int, int]:
        return self.last.get(link, (-1, -1))

    def bind(self, sram: Sram, moves: Sequence[tuple[Scheduled, int]]) -> Carry:
        assert {window for _, window in moves} == {0}

        def carry(place: int, stop: int, sequence: int, base: int, shares: list[int]) -> int:
            for at in range(place, stop):
                operation, what = moves[at][0], next(self.plan, 0)
                op = operation.op
                if isinstance(op, Receive):
                    assert not self.chip.holds(op.link)
                    if what == 0:
                        data = np.ones(op.vectors * 80, np.float32).tobytes()
                        sram.memory(op.dst, len(data))[:] = data
                        self.last[op.link] = sequence, op.transfer
                    elif what == 1:
                        self.chip.receive(arrival(operation, base, sequence=sequence))
                        return at
                    else:
                        self.late.append(arrival(operation, base, sequence=sequence))
                        return at
                elif what == 1:
                    return at
                else:
                    assert isinstance(op, Send)
                    payload = bytes(sram.memory(op.src, op.vectors * 320))
                    what = (op.link, op.transfer, sequence, base + operation.start, shares[0])
                    self.sent.append((*what, payload))
                self.done += 1
            return stop

        return carry


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40))
def test_a_carrier_may_leave_any_move(plan: list[int]) -> None:
    """Sends and receives are the same, in the same order, whoever does them."""
    plain, wanted = chip_and_sent()
    run(plain, 7000)
    sent: Sent = []
    halting = Halting(iter(plan), sent)
    chip = build_chip(
        chip_job(MODEL, 0, WEIGHTS),
        lambda link, transfer, sequence, cycle, check, payload: sent.append(
            (link, transfer, sequence, cycle, check, bytes(payload))
        ),
        carrier=halting,
    )
    halting.chip = chip
    chip.begin(message(base=7000))
    while not chip.advance():
        waiting = chip.waiting_for()
        assert waiting is not None
        assert isinstance(waiting.op, Receive)
        if halting.carries(waiting.op.link):
            chip.receive(halting.late.pop())
        else:
            chip.receive(arrival(waiting, 7000))
    assert sent == wanted
    assert halting.done or 1 in plan or 2 in plan
    error = fails(chip, lambda: chip.receive(arrival(RECEIVES[-1], 7000)))
    assert error.what.startswith("a frame came again")
