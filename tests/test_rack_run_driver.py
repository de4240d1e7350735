"""The host's side: embeddings and RoPE rows out, logits or the largest of them in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from schedules import WEIGHTS, compiled

from chip.errors import ProgramError
from chip.kernels.vmath import inv_frequencies, rope_tables
from compiler.model.layer import EMBEDDING
from compiler.model.presets import PRESETS
from compiler.pipeline import CompiledModel
from compiler.verify.verifier import verify
from interconnect.frame import Control, Frame
from interconnect.transport import LocalHub, LocalTransport, Message
from rack.run.driver import Driver, rope_frequencies
from rack.run.local import LocalRack
from rack.run.steps import StepOrder


def driver(model: CompiledModel) -> tuple[Driver, list[LocalTransport]]:
    """A driver whose chips are bare transports."""
    hub = LocalHub()
    chips = [hub.transport(chip) for chip in range(model.layout.chips)]
    return Driver(model, WEIGHTS.open(), hub.transport(model.layout.chips)), chips


def order(name: str, positions: Sequence[int], tokens: Sequence[int]) -> StepOrder:
    """A step from cycle 0 on, with rows of slot 0."""
    return StepOrder(
        name=name, base=0, slots=(0,) * len(positions), positions=tuple(positions),
        tokens=tuple(tokens),
    )  # fmt: skip


def received(transport: LocalTransport) -> list[Message]:
    messages = []
    while (message := transport.receive(0)) is not None:
        messages.append(message)
    return messages


def test_frequencies_are_the_model_s() -> None:
    tiny, wide = PRESETS["tiny"], PRESETS["tiny-wide"]
    plain = inv_frequencies(tiny.rope_theta, tiny.head_dim)
    assert (rope_frequencies(tiny) == plain).all()
    scaled, unscaled = rope_frequencies(wide), inv_frequencies(wide.rope_theta, wide.head_dim)
    assert scaled[0] == unscaled[0]  # fast ones stay
    assert scaled[-1] == unscaled[-1] / 4.0  # slow ones by the factor


def test_a_step_starts_with_messages_then_rows_for_the_first_group() -> None:
    model = compiled("2x2+1")
    host, chips = driver(model)
    host.reset()
    schedule = model.step(8, 8, decode=False)
    host.start(order(schedule.name, range(3), [65, 66, 67]))
    for chip, transport in enumerate(chips):
        epoch, step, *frames = received(transport)
        assert epoch == Control("epoch", {"epoch": 1})
        assert isinstance(step, Control)
        assert step.values == {
            "sequence": 1, "step": schedule.name, "base": 0, "positions": [0, 1, 2],
            "slots": [0, 0, 0],
        }  # fmt: skip
        assert all(isinstance(frame, Frame) for frame in frames)
        assert bool(frames) == (chip in model.layout.stage_chips(0)) or not frames
    config, at = model.config, schedule.host
    rows = host.memory.rows(at.embedding, np.float32, 3, config.hidden_size, 320)
    assert (rows == WEIGHTS.open().f32_rows(EMBEDDING, 65, 68)).all()
    rope = host.memory.rows(at.rope, np.float32, 3, config.head_dim, 320)
    wanted = rope_tables([0, 1, 2], rope_frequencies(config)).reshape(3, config.head_dim)
    assert (rope == wanted).all()


def test_steps_are_numbered_and_follow_each_other_in_time() -> None:
    rack = LocalRack(compiled("1x2"), WEIGHTS)
    rack.reset()
    first = rack.run_step("prefill8/32", range(8), range(8))
    assert (first.logits, first.top, first.hash_share) == (None, None, 0)
    second = rack.run_step("decode/32", [8], [8])
    host = rack.driver
    assert rack.turns.base == first.cycles + second.cycles
    assert (host.sequence, host.node.epoch) == (2, 1)
    rack.reset()
    assert (host.sequence, host.node.epoch, rack.turns.base) == (2, 2, 0)
    rack.close()


@pytest.mark.parametrize("layout", ["1x1", "2x3+1", "3x1+1"])
def test_chunks_follow_each_other_through_the_stages(layout: str) -> None:
    """As soon as no chip has two at once; later chunks find what earlier ones left in the cache."""
    model = compiled(layout)
    names = ["prefill8/32", "prefill8/32", "prefill2/32"]
    gaps = [model.cycles_until(a, b) for a, b in itertools.pairwise([*names, None])]
    bases = [0, *itertools.accumulate(gaps)]
    steps = [(model.steps[name], base) for name, base in zip(names, bases, strict=False)]
    verify(steps, model.costs, model.network.links, model.memories)
    apart = [model.steps[name].cycles for name in names]
    assert gaps[2] == apart[2]
    assert all(gap <= whole for gap, whole in zip(gaps, apart, strict=True))
    if model.layout.stages > 1:
        assert sum(gaps) < sum(apart)
    hashes = []
    for follow in (True, False):
        rack = LocalRack(model, WEIGHTS)
        rack.reset()
        for place, name in enumerate(names):
            following = names[place + 1] if follow and place < 2 else None
            first, size = 8 * place, 8 if place < 2 else 2
            step = rack.run_step(name, range(first, first + size), range(size), following)
            assert step.cycles == (gaps if follow else apart)[place]
        hashes.append(rack.run_step("decode/32", [18], [3]).hash_share)
        rack.close()
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("layout", ["1x1", "2x3+1", "3x1+1"])
def test_an_interval_is_that_of_the_chip_that_is_longest_at_work(layout: str) -> None:
    model = compiled(layout)
    for a, b in itertools.product(model.steps.values(), repeat=2):
        gaps = [
            max(o.end for o in before.operations) - min(o.start for o in after.operations)
            for before, after in zip(a.programs[:-1], b.programs[:-1], strict=True)
            if before.operations and after.operations
        ]
        assert model.cycles_until(a.name, b.name) == min(a.cycles, max(1, *gaps))


@pytest.mark.parametrize("layout", ["1x1", "1x3+2", "2x2"])
def test_every_column_comes_from_the_chip_that_holds_it(layout: str) -> None:
    whole, parts = LocalRack(compiled(), WEIGHTS), LocalRack(compiled(layout), WEIGHTS)
    few = LocalRack(compiled(layout, top_k=3), WEIGHTS)
    results = []
    for rack in (whole, parts, few):
        rack.reset()
        results.append(rack.run_step("decode/32", [0], [65]))
        rack.close()
    want, got, top = results
    assert want.logits is not None
    assert got.logits is not None
    assert top.top is not None
    assert top.logits is None
    assert (want.logits == got.logits).all()
    assert want.hash_share == got.hash_share == top.hash_share != 0
    ids, values = top.top
    heads = len(compiled(layout).layout.head_chips)
    assert len(ids) == len(set(ids)) == 3 * heads
    assert (got.logits[ids] == values).all()


def test_more_rows_than_the_step_has_are_refused() -> None:
    host, _ = driver(compiled())
    schedule = compiled().steps["decode/32"]
    with pytest.raises(ProgramError, match="chip host, step decode/32: wanted 1 to 1 rows, got 0"):
        host.start(order(schedule.name, [], []))
