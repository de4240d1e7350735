"""Sequence slots: each has a KV cache of its own, and a slot changes no bit of another's sequence.

The same programs serve every slot. One slot is what there was before: no byte moves.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from schedules import WEIGHTS, machine
from sequence_kit import bits, decode, prefill

from chip.errors import ProgramError
from chip.ops.attention import Attend, Rope, cache_of
from chip.run import reference
from chip.run.chip import StepMessage
from chip.spec import VECTOR_BYTES
from chip.sram import locate
from compiler.errors import CompilerError
from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from rack.run.local import LocalRack

WEIGHTS_OF_ONE = WeightsRef.synthetic(replace(PRESETS["tiny"], num_layers=1), 7)
PROMPTS = ([5, 93, 17, 44, 8], [61, 2, 240])


@lru_cache(maxsize=16)
def made(
    layout: str = "1x2", sequences: int = 3, batch: int = 1, layers: int = 3, **options: Any
) -> CompiledModel:
    """Return `tiny` with slots."""
    asked = {"max_model_len": 32, "prefill_chunk": 4, "buckets": (32,), **options}
    return compile_model(
        replace(PRESETS["tiny"], num_layers=layers), machine("lesson"), parse_layout(layout),
        Options(sequences=sequences, batch=batch, **asked),
    )  # fmt: skip


def serve(rack: LocalRack, tokens: list[int], slot: int, start: int = 0) -> tuple[int, bytes]:
    """Run a prompt's tokens from `start` on in a slot; return what the last one gives."""
    prefill(rack, slot, tokens[:-1], start)
    return bits(*decode(rack, [(slot, len(tokens) - 1, tokens[-1])]))


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_slot_differs_in_words_alone(dtype: str) -> None:
    model = made("1x1", dtype=dtype)
    ropes = [o.op for o in model.steps["decode/32"].programs[0].operations
             if isinstance(o.op, Rope)]  # fmt: skip
    assert len(ropes) == 3
    seen: set[int] = set()
    for op in ropes:
        sizes = sizes_of(op)
        for slot, part in itertools.product((0, 1, 2), (0, 1)):
            first, at = cache_of(op, 0)[part], cache_of(op, slot)[part]
            assert (first is None) == (at is None) == (dtype == "fp16" and part == 1)
            if first is None or at is None:
                continue
            for offset in range(0, sizes[part], VECTOR_BYTES):
                here, there = locate(model.chip, first + offset), locate(model.chip, at + offset)
                assert (here.hemisphere, here.slice) == (there.hemisphere, there.slice)
            seen |= set(range(at, at + sizes[part], VECTOR_BYTES))
    assert len(seen) * VECTOR_BYTES == 3 * sum(sum(sizes_of(op)) for op in ropes)  # none twice


def sizes_of(op: Rope) -> tuple[int, int]:
    """Return the bytes of a slot's keys and values, and of their scales."""
    return op.layout.total_bytes, op.layout.scales_bytes


def test_one_slot_is_what_there_was() -> None:
    one, many = made(sequences=1), made()
    assert one.schedule_hash == made(sequences=1, batch=1).schedule_hash != many.schedule_hash
    assert (many.sequences, many.batch) == (3, 1)
    for name, step in one.steps.items():
        assert step.cycles == many.steps[name].cycles
        for program in step.programs:
            for operation in program.operations:
                if isinstance(operation.op, Rope | Attend):
                    assert operation.op.slots is None
                    assert "slots" not in operation.to_list()[2]
    op = next(o.op for o in many.steps["decode/32"].programs[0].operations
              if isinstance(o.op, Rope))  # fmt: skip
    assert op.slots == 3
    regions = dict(op.writes())
    tensors = {t.name: (t.address, t.size) for t in many.memories[0].tensors}
    assert regions["kv"] == tensors["layers.0.kv"]
    assert regions["kvs"] == tensors["layers.0.kv.scale"]
    kv, kvs = cache_of(op, 2)
    assert kv + op.layout.total_bytes == sum(regions["kv"])
    assert kvs is not None
    assert kvs + op.layout.scales_bytes == sum(regions["kvs"])


@pytest.mark.parametrize("dtype", ["int8", "fp16", "int4"])
def test_every_slot_gives_the_same_bits(dtype: str) -> None:
    alone = LocalRack(made(sequences=1, dtype=dtype), WEIGHTS)
    alone.reset()
    wanted = [serve(alone, prompt, 0) for prompt in PROMPTS]
    alone.close()
    rack = LocalRack(made(dtype=dtype), WEIGHTS)
    rack.reset()
    got = [serve(rack, PROMPTS[0], 2), serve(rack, PROMPTS[1], 0)]
    # the prompts are still there: another token of each
    again = [serve(rack, [*PROMPTS[n], 7], slot, len(PROMPTS[n])) for n, slot in ((1, 0), (0, 2))]
    fresh = serve(rack, [*PROMPTS[0], 7], 1)
    rack.close()
    assert got == wanted
    assert again[1] == fresh != again[0]


def test_the_reference_machine_has_the_slots_too() -> None:
    results = []
    for executor in ("fast", "reference"):
        model = made("1x1", layers=1, max_model_len=8, buckets=(8,), prefill_chunk=2)
        rack = LocalRack(model, WEIGHTS_OF_ONE, executor=executor)
        rack.reset()
        found = [serve(rack, prompt, slot) for prompt, slot in ((PROMPTS[1], 2), ([9], 1))]
        cache = rack.nodes[0].chip.sram.tensor("layers.0.kv").tobytes()
        results.append((found, cache))
        rack.close()
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("positions", "slots", "text"),
    [
        ((0,), (3,), "wanted slots 0 to 2, got 3"),
        ((0,), (-1,), "wanted slots 0 to 2, got -1"),
        ((0, 1), (0,), "wanted a slot for each of 2 rows, got 1"),
        ((0, 1), (0, 1), "wanted rows of one slot, got [0, 1]"),
        ((4, 4), (2, 2), "wanted rows of different tokens, got 2 of slot 2, position 4"),
    ],
)
def test_a_chip_refuses_rows_that_it_cannot_have(
    positions: tuple[int, ...], slots: tuple[int, ...], text: str
) -> None:
    rack = LocalRack(made(), WEIGHTS)
    name = "prefill4/32" if len(positions) > 1 else "decode/32"
    message = StepMessage(
        sequence=0, step=name, base_cycle=0, positions=positions, slots=slots
    )  # fmt: skip
    with pytest.raises(ProgramError) as raised:
        rack.nodes[0].chip.begin(message)
    rack.close()
    assert str(raised.value) == f"chip 0, step {name}: {text}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sequences": 0}, "sequences: wanted 1 to 65536, got 0"),
        ({"sequences": 1 << 20}, "sequences: wanted 1 to 65536, got 1048576"),
        (
            {"sequences": 4, "batch": 5},
            "batch: wanted 1 to 4, as many as there are sequences, got 5",
        ),
        ({"batch": 0}, "batch: wanted 1 to 1, as many as there are sequences, got 0"),
    ],
)
def test_options_are_in_their_bounds(options: dict[str, int], text: str) -> None:
    with pytest.raises(CompilerError) as raised:
        Options(**options)
    assert str(raised.value) == text


def test_slots_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CompilerError, match="bytes"):
        made("1x1", sequences=1 << 16)


def test_intervals_are_of_every_ordered_pair() -> None:
    model = made("2x1+1")
    for a, first in model.steps.items():
        for b, then in model.steps.items():
            gaps = [
                max(o.end for o in one.operations) - min(o.start for o in two.operations)
                for one, two in zip(first.programs[:-1], then.programs[:-1], strict=True)
                if one.operations and two.operations
            ]
            assert model.interval(a, b) == min(first.cycles, max(1, *gaps))
    with pytest.raises(KeyError):
        model.interval("decode/32", "decode/999")


def test_an_encoder_has_one_sequence() -> None:
    config = next(one for one in PRESETS.values() if one.encoder is not None)
    with pytest.raises(CompilerError) as raised:
        compile_model(
            config, machine("lesson"), parse_layout("1x1"), Options(sequences=2, max_model_len=8)
        )
    assert str(raised.value) == f"sequences: wanted 1, as {config.name} is an encoder, got 2"


def test_the_cache_of_a_slot_is_the_slots_alone() -> None:
    rack = LocalRack(made("1x1"), WEIGHTS)
    rack.reset()
    cache = rack.nodes[0].chip.sram.tensor("layers.0.kv")
    op = next(o.op for o in rack.compiled.steps["decode/32"].programs[0].operations
              if isinstance(o.op, Attend))  # fmt: skip
    step, size = op.kv_step or 0, op.layout.total_bytes
    serve(rack, PROMPTS[0], 1)
    used = [bool(np.any(cache[s * step : s * step + size])) for s in range(3)]
    between = np.any(cache[size:step])
    rack.close()
    assert (used, between) == ([False, True, False], np.False_)


def test_the_reference_machine_keeps_what_ran_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MOST_LOWERED", 2)
    model = made("1x1", layers=1, max_model_len=8, buckets=(8,), prefill_chunk=1)
    rack = LocalRack(model, WEIGHTS_OF_ONE, executor="reference")
    rack.reset()
    chip = rack.nodes[0].chip
    assert isinstance(chip, reference.ReferenceChip)
    for slot in (0, 1, 0, 2):
        decode(rack, [(slot, 0, 5)])
    rack.close()
    assert list(chip._lowered) == [("decode/8", (0,)), ("decode/8", (2,))]
