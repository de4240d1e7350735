"""Buffers' lifetimes follow from the order of operations; their sizes from what lies in them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.model.graph import build_graph
from compiler.model.layer import head, layer
from compiler.model.operation import GraphOp, Kind
from compiler.model.presets import PRESETS
from compiler.place.buffers import Buffer, MemoryOptions, Slices, lifetimes, step_buffers
from compiler.place.layout import parse_layout
from compiler.place.partition import partition

TINY = PRESETS["tiny"]
LAYER, HEAD = layer(TINY), head(TINY)


def buffers(layout: str, chip: int, rows: int = 1, **options: object) -> dict[str, Buffer]:
    wanted: dict[str, object] = {
        "dtype": "int8", "context": 64, "rows": (rows,), "forward_row_bytes": {}, **options
    }  # fmt: skip
    split = partition(build_graph(TINY), parse_layout(layout))
    found = step_buffers(split, chip, rows, MemoryOptions(**wanted))  # type: ignore[arg-type]
    assert len({buffer.name for buffer in found}) == len(found)
    return {buffer.name: buffer for buffer in found}


def without_exchanges(ops: tuple[GraphOp, ...]) -> tuple[GraphOp, ...]:
    return tuple(replace(op, exchanged=False) for op in ops)


def test_a_value_lives_from_its_first_writer_to_its_last_reader() -> None:
    order = without_exchanges(LAYER)
    lives = lifetimes(order)
    for name, (first, last) in lives.items():
        if name not in ("residual", "rope"):
            writers = [place for place, op in enumerate(order) if op.output == name]
            readers = [place for place, op in enumerate(order) if name in op.inputs]
            assert (first, last) == (writers[0], readers[-1]), name


def test_what_enters_lives_always_and_a_result_to_the_end() -> None:
    lives = lifetimes((*LAYER, *HEAD))
    assert lives["residual"] == lives["rope"] == (-1, 15)
    assert lives["head.in"] == (13, 14)
    assert lives["logits"] == (14, 15)
    assert lifetimes(HEAD) == {"residual": (-1, 2), "head.in": (0, 1), "logits": (1, 2)}


def test_another_chip_may_write_a_gather_buffer_early() -> None:
    """From the beginning of a layer, from ATTEND (3), behind o_proj (5), from the gate (9)."""
    assert [LAYER[place].output for place in (3, 5, 9)] == ["attn.out", "o.out", "mlp.mid"]
    lives = lifetimes(LAYER)
    gathered = {op.output: lives[op.output] for op in LAYER if op.exchanged}
    assert gathered == {
        "attn.out": (0, 4), "o.out": (3, 6), "mlp.mid": (6, 10), "mlp.out": (9, 12)
    }  # fmt: skip


def test_an_operation_more_is_followed() -> None:
    """A norm of the MLP's branch before its sum keeps what it reads, and what it makes."""
    norm = replace(LAYER[0], name="post_norm", inputs=("mlp.out",), output="normed")
    added = replace(LAYER[-1], inputs=("residual", "normed"))
    lives = lifetimes((*LAYER[:-1], norm, added))
    assert (lives["mlp.out"], lives["normed"]) == ((9, 12), (12, 13))
    assert lives["residual"] == (-1, 14)
    read_late = replace(LAYER[-1], inputs=("residual", "query"))
    assert lifetimes((*LAYER[:-1], read_late))["query"] == (2, 12)


@pytest.mark.parametrize(("layout", "chip"), [("1x1", 0), ("2x2", 1), ("2x3+2", 4)])
def test_sizes_are_those_of_the_rows(layout: str, chip: int) -> None:
    found = buffers(layout, chip, rows=8)
    assert found["residual"].size == 8 * 320  # 64 fp32 columns
    assert found["attn.in"].size == 8 * 320
    assert found["attn.in.scale"].size == 320
    assert "handed" not in found
    assert found["scores"].slices is Slices.BULK
    assert found["attn.in"].slices is Slices.FEED
    assert (found["scores"].first, found["scores"].last) == (3, 3)


def test_a_chip_has_no_more_than_it_needs() -> None:
    alone = buffers("1x1", 0)
    assert {"logits", "head.in", "qkv", "gate_up"} <= set(alone)
    assert not {"top_k", "handed", "forward.0"} & set(alone)
    assert not any(
        "stats" in name or name == "attn.in.scale" for name in buffers("1x1", 0, dtype="fp16")
    )
    first, behind = buffers("2x2", 0), buffers("2x2", 2, top_k=5)
    assert "handed" not in first
    assert (behind["handed"].first, behind["handed"].last) == (-1, -1)
    assert behind["handed"].size == behind["mlp.out"].size
    assert behind["top_k"].first == behind["logits"].last
    head_only = buffers("2x2+1", 4, forward_row_bytes={4: 640})
    assert set(head_only) == {
        "residual", "rope", "handed", "head.in", "head.in.scale", "logits",
        *(f"forward.{slot}" for slot in range(4)),
    }  # fmt: skip
    always = [head_only[name] for name in ("residual", "rope", "forward.0", "forward.3")]
    assert {(buffer.first, buffer.last) for buffer in always} == {(-1, 2)}


def test_kinds_of_a_layer_in_order() -> None:
    kinds = [op.kind for op in LAYER]
    attention = [Kind.NORM, Kind.LINEAR, Kind.ROPE, Kind.ATTEND, Kind.GATHER, Kind.LINEAR, Kind.ADD]
    mlp = [Kind.NORM, Kind.LINEAR, Kind.GATE, Kind.GATHER, Kind.LINEAR, Kind.ADD]
    assert kinds == attention + mlp
