"""The law of templates: each way of spoiling one is refused when it is built, in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from one_operation import CHIP
from operation_grid import Case, attention, name, one_row, operand
from plain_ops import operation_of, template
from schedules import machine

from chip.errors import TemplateError
from chip.floorplan import Queue, alu, hops, mxm
from chip.floorplan import Role as R
from chip.isa.instructions import ABC, ACC, IW, LW, Alu, AluOp, Permute, Read, Transpose, Write
from chip.isa.issue import Issue
from chip.isa.operands import Immediate, Stream, group
from chip.ops.opcodes import Opcode
from chip.spec import VECTOR_BYTES
from chip.sram import work_start
from compiler.codegen import table
from compiler.codegen.core.bind import Binder
from compiler.codegen.core.control import Bulk
from compiler.codegen.core.law import base_on, obey
from compiler.codegen.core.template import Template, parts_of
from compiler.codegen.lower import bases_of
from compiler.codegen.products import rows
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import parse_layout

Item = Issue | Bulk


def product(rows: int, k: int = 640, n: int = 2880, dtype: str = "int8") -> Case:
    """A product of three groups of columns and two tiles."""
    shape = {"rows": rows, "k": k, "n": n, "out": "f32", "dtype": dtype}
    return Opcode.MATMUL, operand(shape, "x s w sw y" if dtype == "int8" else "x w y")


ROWS, FP16 = product(16), product(3, dtype="fp16")
CELL = product(1, n=320)  # one group: tile behind tile
ROW = one_row(1000, 1648, "f32", prologue="norm")
ATTEND = attention(8, 2, 128, 1024, 4)
ROPE = (
    Opcode.ROPE,
    operand(
        {"rows": 2, "dtype": "int8", "heads": 8, "kv_heads": 2, "head_dim": 128, "context": 64},
        "qkv rope q sq kv kvs",
    ),
)


def built(case: Case) -> Template:
    """Return a template that was not asked yet whether it is lawful."""
    return table.laid_out_only(operation_of(*case), CHIP)


@dataclass(frozen=True, slots=True)
class Spoiled:
    """A template's instructions outside blocks, changed."""

    items: Sequence[Item]

    def issues(self, base: Callable[[str], int]) -> Iterator[Item]:
        return iter(self.items)


def spoiled(case: Case, change: Callable[[list[Item]], Sequence[Item]]) -> Template:
    """Change a template's instructions outside blocks."""
    found = built(case)
    items = [one for stream in found.streams for one in stream.issues(base_on(CHIP))]
    return replace(found, streams=(Spoiled(change(items)),))


def nth(items: Sequence[Item], number: int, of: type[Any], **fields: Any) -> int:
    """Return the place of one of the instructions of a kind that have these values."""
    found = [
        at for at, one in enumerate(items)
        if isinstance(one, Issue) and isinstance(one.instruction, of)
        and all(getattr(one.instruction, key) == value for key, value in fields.items())
    ]  # fmt: skip
    return found[number]


def moved(number: int, cycles: int, of: type[Any], **fields: Any) -> Callable[[list[Item]], Any]:
    """Move one instruction in time."""

    def change(items: list[Item]) -> Sequence[Item]:
        at = nth(items, number, of, **fields)
        return [*items[:at], items[at].moved(cycles), *items[at + 1 :]]

    return change


def changed(number: int, of: type[Any], **values: Any) -> Callable[[list[Item]], Any]:
    """Change values of one instruction."""

    def change(items: list[Item]) -> Sequence[Item]:
        at = nth(items, number, of)
        one = items[at]
        assert isinstance(one, Issue)
        other = replace(one, instruction=replace(one.instruction, **values))
        return [*items[:at], other, *items[at + 1 :]]

    return change


def dropped(number: int, of: type[Any]) -> Callable[[list[Item]], Any]:
    return lambda items: [one for at, one in enumerate(items) if at != nth(items, number, of)]


def queued(number: int, of: type[Any], by: int) -> Callable[[list[Item]], Any]:
    """Put one instruction into another queue of its unit."""

    def change(items: list[Item]) -> Sequence[Item]:
        at = nth(items, number, of)
        one = items[at]
        assert isinstance(one, Issue)
        queue = Queue(one.queue.unit, one.queue.hemisphere, one.queue.number + by)
        return [*items[:at], replace(one, queue=queue), *items[at + 1 :]]

    return change


def bulk(number: int, **values: Any) -> Callable[[list[Item]], Any]:
    """Change a run of vectors of bulk memory."""

    def change(items: list[Item]) -> Sequence[Item]:
        at = [n for n, one in enumerate(items) if isinstance(one, Bulk)][number]
        one = items[at]
        assert isinstance(one, Bulk)
        new = {k: v(getattr(one, k)) if callable(v) else v for k, v in values.items()}
        return [*items[:at], one._replace(**new), *items[at + 1 :]]

    return change


def also(*more: Item) -> Callable[[list[Item]], Any]:
    return lambda items: [*items, *more]


def fills(items: Sequence[Item], slot: int) -> int:
    """Return the place of the first ABC that fills a slot."""
    return next(
        at for at, one in enumerate(items)
        if isinstance(one, Issue) and isinstance(one.instruction, ABC)
        and one.instruction.stream is not None and one.instruction.slot == slot
    )  # fmt: skip


def filled_anew(items: list[Item]) -> Sequence[Item]:
    """Let the activation of the second tile go where the first one's waits."""
    at = fills(items, 1)
    one = items[at]
    assert isinstance(one, Issue)
    other = replace(one, instruction=replace(one.instruction, slot=0))
    return [*items[:at], other, *items[at + 1 :]]


def begun_in_another(items: list[Item]) -> Sequence[Item]:
    """Let a plane's second group be added up in the first one's rows, which have not left yet."""
    out = list(items)
    for at, one in enumerate(items):
        if not isinstance(one, Issue) or one.queue != mxm(0, R.DRAIN):
            continue
        assert isinstance(one.instruction, ACC)
        if one.instruction.slot == 16:
            out[at] = replace(one, instruction=replace(one.instruction, slot=0))
    return out


LOAD = mxm(0, R.LOAD)
AT_MXM = 1 + hops(alu(0), mxm(0, R.FEED), CHIP)  # a COPY's way to the planes
WEIGHTS = Bulk(LOAD, 3000, "w", 0, Stream(False, 0))  # long after the product
LONE = Alu(op=AluOp.COPY, a=Immediate(0.0), lanes=80, out=group(Stream(True, 20), 1))
PUT = Bulk(mxm(2, R.LOAD), 2000 + AT_MXM, "w", 16, Stream(True, 20), 1)  # in the value's place
TAKEN = Issue(mxm(2, R.LOAD), 2000 + AT_MXM, LW(stream=Stream(True, 20), count=1, column=0))
MUTATIONS = {
    "IW a cycle early": (
        CELL, moved(1, -1, IW),
        r"two weights in one column of the buffer: LW of Spoiled on MXM_W3 at \d+ and LW of",
    ),
    "IW of another width": (
        CELL, changed(0, IW, columns=79),
        r"weight buffer: wanted 79 columns, got 80: IW of Spoiled on MXM_W1 at \d+",
    ),
    "IW behind the next tile's LW": (
        CELL, moved(0, 20, IW), "two weights in one column of the buffer: LW of Spoiled on MXM_W0",
    ),
    "no IW": (ROWS, dropped(-1, IW), "weights that are never installed: LW of Spoiled on MXM_E3"),
    "LW a cycle late": (
        CELL, moved(0, 1, LW),
        "two instructions in one queue and cycle: LW of Spoiled on MXM_W0 at .* and LW",
    ),
    "LW of other columns": (
        ROWS, changed(4, LW, column=0), "two weights in one column of the buffer: LW",
    ),
    "weights a cycle late": (
        ROWS, bulk(0, cycle=lambda at: at + 1),
        r"two accesses of one slice in one cycle: READ of Spoiled on MEM_W\d+ at \d+ and READ",
    ),
    "weights on another's streams": (
        CELL, bulk(0, stream=lambda s: Stream(s.eastward, s.number + 8)),
        r"two values on stream W\d+ in one register: READ of Spoiled on MEM_W\d+ at \d+ and READ",
    ),
    "weights that nobody multiplies": (
        ROWS, also(Issue(mxm(0, R.FEED), 3000, IW(columns=0))),
        "weights in the array that are lost: IW of Spoiled on MXM_W1 at 3000",
    ),
    "ABC a cycle early": (
        CELL, moved(0, -1, ABC), "weights that are taken as activations: ABC of Spoiled on MXM_W1",
    ),
    "activation slot filled anew early": (
        CELL, filled_anew, r"nothing in the activation buffer's slot: ABC of Spoiled on MXM_W1 at",
    ),
    "activation slot filled twice": (
        CELL, also(Issue(mxm(0, R.FEED), 2000, ABC(stream=Stream(False, 28), slot=0)),
                   Issue(alu(12), 2000 - AT_MXM, replace(LONE, out=group(Stream(False, 28), 1)))),
        "a row of the activation buffer that is lost: ABC of Spoiled on MXM_W1 at 2000",
    ),
    "slot that nobody filled": (
        ROW, changed(-1, ABC, slot=60), "nothing in the activation buffer's slot: ABC of Spoiled",
    ),
    "ACC a cycle early": (CELL, moved(0, -1, ACC), "no product leaves the array: ACC of Spoiled"),
    "product that no ACC takes": (
        CELL, dropped(0, ACC), "an accumulator row that was never started: ACC of Spoiled on MXM",
    ),
    "ABC that no ACC takes": (
        CELL, also(Issue(mxm(0, R.FEED), 2000, ABC(slot=0))),
        "a product that no ACC takes: ABC of Spoiled on MXM_W1 at 2000",
    ),
    "ABC before all weights": (
        CELL, also(Issue(mxm(0, R.FEED), 0, ABC(stream=Stream(False, 28))),
                   Issue(mxm(0, R.DRAIN), 24, ACC(slot=9, first=True)),
                   Issue(alu(12), -AT_MXM, replace(LONE, out=group(Stream(False, 28), 1)))),
        "no weights in the plane: ABC of Spoiled on MXM_W1 at 0",
    ),
    "accumulator row of another group": (
        ROWS, begun_in_another,
        r"an accumulator row that is lost: ACC of Spoiled on MXM_W2 at \d+",
    ),
    "accumulator row begun anew": (
        CELL, changed(4, ACC, first=True),
        "an accumulator row that is lost: ACC of Spoiled on MXM_W2 at",
    ),
    "accumulator row not begun": (
        ROW, changed(0, ACC, first=False), "an accumulator row that was never started: ACC",
    ),
    "fp16 on an odd plane": (
        FP16, queued(0, ACC, 3), "fp16: wanted the even plane of a pair, got plane 1: ACC of Sp",
    ),
    "half a tile": (
        FP16, changed(0, ACC, half=1), "half a tile without the other half: ACC of Spoiled",
    ),
    "SXM queue twice": (
        ROWS, queued(1, Permute, -1), "two instructions in one queue and cycle: PERMUTE of Spoiled",
    ),
    "SXM pass a cycle late": (
        ROWS, moved(1, 1, Permute), r"nothing on stream E4: ADD of block 2 on VXM\d+ at",
    ),
    "SXM pass to another's stream": (
        ROWS, lambda items: changed(1, Permute, dst=dst_of(items))(items),
        "two values on stream E0 in one register: PERMUTE of Spoiled on SXM_W0 at",
    ),
    "transposed a cycle early": (
        ATTEND, moved(0, -1, Transpose), r"nothing on stream W\d+: TRANSPOSE of Spoiled on SXM_W",
    ),
    "work port taken by another": (
        ATTEND, lambda items: also(items[nth(items, 5, Read)])(items),
        "two instructions in one queue and cycle: READ of Spoiled on MEM_",
    ),
    "read of work memory a cycle late": (
        ATTEND, moved(5, 1, Read), "nothing on stream W0: COPY of Spoiled on VXM",
    ),
    "write a cycle late": (
        ATTEND, moved(0, 1, Write),
        "two instructions in one queue and cycle: WRITE of Spoiled on MEM_W0",
    ),
    "slice's port twice": (
        ROWS, also(WEIGHTS, WEIGHTS._replace(offset=43 * 32, stream=Stream(False, 16))),
        "two accesses of one slice in one cycle: READ of Spoiled on MEM_W1 at 2983",
    ),
    "operands in one slice": (
        ROWS, also(WEIGHTS, WEIGHTS._replace(operand="kv", offset=32, stream=Stream(False, 16))),
        "accesses of two operands that may lie in one slice: READ of Spoiled on MEM_W",
    ),
    "opposite ways through a slice": (
        ROWS, also(WEIGHTS, WEIGHTS._replace(unit=alu(0), cycle=2993, stream=Stream(True, 0))),
        "accesses of opposite directions that may meet at a slice: READ of Spoiled on MEM_W",
    ),
    "value overwritten on its way": (
        ROPE, also(Issue(alu(9), 2000, LONE), PUT, TAKEN),
        "a value on stream E20 that is lost: COPY of Spoiled on VXM9 at 2000",
    ),
    "streams of another count": (
        ROWS, changed(0, Permute, lanes=80),
        "streams: wanted 1 for 80 lanes of f32, got 4: PERMUTE of Spoiled on SXM_W0 at",
    ),
}  # fmt: skip


def dst_of(items: list[Item]) -> Any:
    one = items[nth(items, 0, Permute)]
    assert isinstance(one, Issue)
    assert isinstance(one.instruction, Permute)
    return one.instruction.dst


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_spoiled_template_is_refused(kind: str) -> None:
    case, change, words = MUTATIONS[kind]
    found = built(case)
    obey(kind, found, CHIP)
    with pytest.raises(TemplateError, match=f"^{kind}: ({words})"):
        obey(kind, spoiled(case, change), CHIP)


def shown(one: Item, later: int) -> tuple[Any, ...]:
    """Return when and where an instruction is, and what it does but for addresses and rows."""
    if isinstance(one, Bulk):
        return (*one._replace(cycle=one.cycle + later, offset=0), one.vectors)
    known = ("slot", "step", "first", "count", "column", "columns", "out", "src", "dst")
    values = [getattr(one.instruction, field, None) for field in known]
    if isinstance(one.instruction, (Read, Write)):
        values = []
    return one.queue, one.cycle + later, one.n, one.d, one.instruction.name, *values


@pytest.mark.parametrize(
    "case",
    [ROWS, ROW, CELL, FP16, ATTEND, attention(8, 2, 128, 700, 5, "fp16"), product(3, 100, 344),
     product(2, 700, 24, "fp16"), product(200, 64, 64), one_row(21000, 100, "f32", gaps=24)],
    ids=name,
)  # fmt: skip
def test_parts_are_what_is_issued(case: Case) -> None:
    """What the law looks at once comes again just so; a last batch may have fewer rows."""
    found, base = built(case), base_on(CHIP)
    for stream in found.streams:
        issued = Counter(shown(one, 0) for one in stream.issues(base))
        parts = Counter(
            shown(one, start)
            for starts, issues in parts_of(stream, base) for one in list(issues) for start in starts
        )  # fmt: skip
        assert not issued - parts
        batch = case[0] is Opcode.ATTEND and case[1]["rows"] % 4
        assert batch or issued == parts


@pytest.mark.parametrize("case", [ROW, ROPE, attention(8, 2, 128, 256, 5, "fp16")], ids=name)
@pytest.mark.parametrize("side", [0, 1])
def test_both_sides_are_asked_for(case: Case, side: int) -> None:
    """Whatever a block does at an address, it is asked for it at all addresses."""
    operation = operation_of(*case)
    found = built(case)
    first = work_start(CHIP) // VECTOR_BYTES + side
    bases = dict.fromkeys([*bases_of(operation), "src:0", "q", "scratch"], first)
    for placed in found.placed[:6]:
        given = dict.fromkeys(bases, 0)
        real = Binder(CHIP, placed, placed.row, bases, found.row_vectors, given).issues(0)
        both = Binder(CHIP, placed, placed.row, None, found.row_vectors, given).issues(0)
        asked = {(one.queue, one.cycle) for one in both}
        assert {(one.queue, one.cycle) for one in real} <= asked


def early_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all products of several rows be added up two cycles early: between them sums leave."""
    real = rows.RowsProduct.multiplied
    monkeypatch.setattr(rows.RowsProduct, "multiplied", lambda self, *which: real(self, *which) - 2)
    table._template.cache_clear()
    table.check_law.cache_clear()


@pytest.fixture
def anew() -> Iterator[None]:
    """Forget templates that a test spoiled."""
    yield
    table._template.cache_clear()
    table.check_law.cache_clear()


@pytest.mark.usefixtures("anew")
def test_an_unlawful_template_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    early_products(monkeypatch)
    with pytest.raises(TemplateError) as caught:
        template(*product(2, 64, 64), CHIP)
    assert str(caught.value) == (
        "matmul of rows 2, k 64, n 64, dtype int8, out f32: no product leaves the array: ACC of "
        "RowsProduct on MXM_W2 at 43"
    )


@pytest.mark.usefixtures("anew")
def test_no_schedule_has_an_unlawful_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are taken before the law is asked: no compilation ends before it was."""
    early_products(monkeypatch)
    options = Options(max_model_len=24, prefill_chunk=2, buckets=(24,))
    with pytest.raises(TemplateError, match=r"^matmul of rows 2, .*: no product leaves the array"):
        compile_model(PRESETS["tiny"], machine("lesson"), parse_layout("1x1"), options)
    compile_model(
        PRESETS["tiny"], machine("lesson"), parse_layout("1x1"), options, kinds="estimate"
    )
