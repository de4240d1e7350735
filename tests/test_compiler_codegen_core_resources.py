"""Resource tables: whose an ALU, a stream or a queue is, and that templates keep to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from one_operation import CHIP, placed
from operation_grid import attention, one_row, operand
from plain_ops import cycles, scheduled, template

from chip.errors import TemplateError
from chip.floorplan import Unit
from chip.isa.instructions import ABC, ACC, LW, Alu, Lanes, Read, Transpose, Write
from chip.isa.issue import Issue
from chip.isa.operands import In, Stream
from chip.ops.opcodes import Opcode
from compiler.codegen import resources as vector_tables
from compiler.codegen.attention import resources as attention_tables
from compiler.codegen.core.resources import (
    Kind,
    Owner,
    Resources,
    alu,
    alus,
    crossing,
    inward,
    outward,
    sxm_queue,
)
from compiler.codegen.lower import lower_operation
from compiler.codegen.lstm_cell import cell, lower_cell
from compiler.codegen.products import resources as product_tables


@dataclass(frozen=True, slots=True)
class Feed:
    stream: int = outward(28, "activations")
    alus: tuple[int, ...] = alus((12, 11), "pass activations on")


@dataclass(frozen=True, slots=True)
class Drain:
    total: int = alu(12, "the sum")
    plain: int = 7


@dataclass(frozen=True, slots=True)
class Ways:
    far: int = crossing(24, "what goes across", 5)
    back: int = inward(28, "what comes back")
    queue: int = sxm_queue(3, "turns", 3, turns=True)


def table(feed: range, drain: range) -> Resources:
    owners = (Owner("feed", Feed(), feed), Owner("drain", Drain(), drain))
    return Resources("MATMUL", ("load", "add", "leave"), owners)


def test_a_field_is_its_number() -> None:
    assert (Feed().stream, Feed().alus, Drain().total, Ways().far) == (28, (12, 11), 12, 24)


def test_owners_of_one_thing_may_follow_one_another() -> None:
    assert table(range(2), range(2, 3)).of(Kind.ALU) == {11, 12}


def test_owners_of_one_thing_that_overlap_are_refused() -> None:
    with pytest.raises(TemplateError) as caught:
        table(range(2), range(1, 3))
    assert str(caught.value) == (
        "resources of MATMUL: ALU 12 is held by feed (pass activations on) and by drain (the sum), "
        "both at work in phase add"
    )


def test_what_crosses_the_chip_is_inward_and_outward() -> None:
    @dataclass(frozen=True, slots=True)
    class Outward:
        stream: int = outward(28, "activations")

    @dataclass(frozen=True, slots=True)
    class Inward:
        stream: int = inward(28, "sums")

    @dataclass(frozen=True, slots=True)
    class Across:
        stream: int = crossing(24, "what goes across", 5)

    @dataclass(frozen=True, slots=True)
    class InTurns:
        stream: int = outward(20, "weights", 12, turns=True)

    def both(one: Any, other: Any) -> None:
        Resources("X", ("a",), (Owner("one", one, range(1)), Owner("other", other, range(1))))

    both(Outward(), Inward())
    both(Outward(), InTurns())
    both(Across(), InTurns())
    for end in (Outward(), Inward()):
        with pytest.raises(TemplateError, match=r"stream 28 is held by one"):
            both(Across(), end)


def test_a_table_prints() -> None:
    found = Resources("X", ("a", "b"), (Owner("ways", Ways(), range(2)),))
    assert str(found).splitlines() == [
        "X: a, b",
        "  ways (a to b)",
        "    far: crossing stream 24-28: what goes across",
        "    back: inward stream 28: what comes back",
        "    queue: SXM queue 3-5: turns, in turns",
    ]


# -- templates keep to their tables


def rows(k: int, n: int, count: int, dtype: str) -> tuple[Opcode, dict[str, Any]]:
    shape = {"rows": count, "k": k, "n": n, "out": "f16", "dtype": dtype}
    return Opcode.MATMUL, operand(shape, "x s w sw y" if dtype == "int8" else "x w y")


NORM = operand({"rows": 2, "dtype": "int8", "hidden": 336, "eps": 1e-5}, "x gamma q s")
ROPE = {"rows": 2, "dtype": "int8", "heads": 8, "kv_heads": 2, "head_dim": 128, "context": 64}
TABLES: list[tuple[Resources, list[tuple[Opcode, dict[str, Any]]]]] = [
    (
        product_tables.ONE_ROW,
        [
            one_row(1000, 2 * 2000, "f16", prologue="norm", epilogue="silu"),
            one_row(64, 640, "f16", epilogue="silu"),
            one_row(64, 64, "f32"),
        ],
    ),
    (product_tables.ROWS, [rows(700, 1300, 4, "int8"), rows(64, 64, 2, "int8")]),
    (
        product_tables.FP16,
        [rows(330, 1000, 1, "fp16"), rows(100, 64, 1, "fp16"), rows(330, 24, 4, "fp16")],
    ),
    (
        attention_tables.INT8,
        [attention(32, 8, 128, 1024, 2), attention(8, 4, 8, 512, 1), attention(7, 7, 30, 800, 1)],
    ),
    (attention_tables.FP16, [attention(8, 2, 128, 1024, 2, "fp16")]),
    (vector_tables.NORM, [(Opcode.NORM, NORM)]),
    (vector_tables.ROPE, [(Opcode.ROPE, operand(ROPE, "qkv rope q sq kv kvs"))]),
    (vector_tables.TOPK, [(Opcode.TOPK, operand({"n": 5008, "k": 3, "first_column": 7}, "x y"))]),
]


def issues_of(cases: Iterable[tuple[Opcode, dict[str, Any]]]) -> list[Issue]:
    out = []
    for opcode, shape in cases:
        a = placed(opcode, shape)
        out += lower_operation(scheduled(opcode, str(opcode), a, 0, cycles(opcode, a, CHIP)), CHIP)
    return out


def streams_of(issue: Issue) -> Iterable[tuple[Kind, int]]:
    """Name the streams of an instruction, as the VXM sees them."""
    one, side = issue.instruction, issue.queue.hemisphere

    def seen(stream: Stream) -> tuple[Kind, int]:
        return (Kind.OUTWARD if stream.eastward == (side == 1) else Kind.INWARD), stream.number

    if isinstance(one, Alu):
        yield from ((Kind.OUTWARD, tap.stream.number) for tap in one.out)
        for source in one.sources:
            if isinstance(source, In):
                yield from ((Kind.INWARD, tap.stream.number) for tap in source.taps)
    elif isinstance(one, Read | Write):
        yield seen(one.stream)
    elif isinstance(one, Lanes):
        yield from (seen(tap.stream) for tap in (*one.src, *one.dst))
    elif isinstance(one, LW | Transpose):
        first, count = (one.stream, one.count) if isinstance(one, LW) else (one.src, 16)
        yield from (seen(Stream(first.eastward, first.number + n)) for n in range(count))
    elif isinstance(one, ACC):
        yield from (seen(tap.stream) for tap in one.out)
    elif isinstance(one, ABC) and one.stream is not None:
        yield seen(one.stream)


def check_keeps_to(found: Resources, issues: list[Issue]) -> None:
    """Every stream and SXM queue has an owner, and what an owner holds is used."""
    used = {stream for issue in issues for stream in streams_of(issue)}
    used |= {(Kind.SXM, i.queue.number) for i in issues if i.queue.unit is Unit.SXM}
    used |= {(Kind.ALU, i.queue.number) for i in issues if i.queue.unit is Unit.VXM}
    across = found.of(Kind.CROSSING)
    for kind in (Kind.INWARD, Kind.OUTWARD, Kind.SXM):
        beside = across if kind is not Kind.SXM else set()
        assert {n for k, n in used if k is kind} <= found.of(kind) | beside, kind
    for held in found.holdings():
        if held.owner != "blocks":
            kinds = (Kind.INWARD, Kind.OUTWARD) if held.kind is Kind.CROSSING else (held.kind,)
            assert all(any((kind, n) in used for kind in kinds) for n in held.numbers), held


@pytest.mark.parametrize(("found", "cases"), TABLES, ids=lambda v: getattr(v, "template", ""))
def test_templates_keep_to_their_table(found: Resources, cases: list[Any]) -> None:
    check_keeps_to(found, issues_of(cases))


def test_the_cell_keeps_to_its_table() -> None:
    check_keeps_to(vector_tables.LSTM, lower_cell(cell(320, 4, CHIP), CHIP))


def test_passes_of_attention_take_no_alu_that_is_not_theirs() -> None:
    """Blocks apart, which come between passes, every ALU that is issued to has an owner."""
    opcode, shape = attention(32, 8, 128, 1024, 2)
    found = template(opcode, shape, CHIP)
    own = {use for one in found.uses for use in one.table[0].tolist()}
    assert own == attention_tables.INT8.of(Kind.ALU)


def test_the_page_shows_the_table() -> None:
    page = Path(__file__).parent.parent / "docs" / "template.md"
    assert str(product_tables.ONE_ROW) in page.read_text()


def test_products_of_many_rows_keep_to_their_table() -> None:
    """Rows of two chunks, whose scales fill all registers; with a bias, and without."""
    spec, issues = replace(CHIP, work_slices=2, feed_slices=2), list[Issue]()
    for bias in ("", " b"):
        shape = {"rows": 480, "k": 64, "n": 640, "out": "f32", "dtype": "int8"}
        a = placed(Opcode.MATMUL, operand(shape, "x s w sw y" + bias), 0, spec)
        end = cycles(Opcode.MATMUL, a, spec)
        issues += lower_operation(scheduled(Opcode.MATMUL, "rows", a, 0, end), spec)
    check_keeps_to(product_tables.MANY_ROWS, issues)
