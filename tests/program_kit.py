"""Instructions and queue programs drawn at random."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import strategies as st
from schedules import machine

from chip.floorplan import mem, queues
from chip.isa.assembly import KINDS, text_of
from chip.isa.instructions import Alu, AluOp, Instruction, Read
from chip.isa.issue import Issue
from chip.isa.operands import At, Chain, Chosen, Held, Immediate, In, Lane, Position, Stream, Tap
from chip.isa.queues import Named, Nop, QueueProgram, Repeat, advanced

CHIP = machine("groqrack").chip
whole = st.integers(-(1 << 20), 1 << 20)
streams = st.builds(Stream, st.booleans(), st.integers(0, 31))
groups = st.lists(st.builds(Tap, streams, st.integers(0, 7)), max_size=4).map(tuple)
ats = st.builds(At, whole, whole, whole, whole, whole, whole, whole)
chosen = st.builds(Chosen, whole, whole, whole, whole, whole)
floats = st.floats(width=32, allow_nan=False)
sources = st.one_of(
    st.builds(In, groups, st.sampled_from(["i8", "f16", "i32", "f32"])),
    st.builds(Chain, st.integers(0, 15)), st.builds(Held, st.integers(0, 15)),
    st.builds(Immediate, floats), st.builds(lambda v: Immediate(v, "i32"), whole),
    st.builds(Lane, whole, whole), st.builds(Position, whole, whole, whole, whole),
)  # fmt: skip
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "int": whole, "bool": st.booleans(), "int | None": st.none() | whole, "int | At": whole | ats,
    "Address": whole | ats | chosen,
    "Stream": streams, "Stream | None": st.none() | streams, "Group": groups, "Source": sources,
    "Source | None": st.none() | sources,
    "tuple[int | None, ...]": st.lists(st.none() | st.integers(0, 319), max_size=40).map(tuple),
}  # fmt: skip


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    mnemonic = draw(st.sampled_from(list(KINDS)))
    kind = KINDS[mnemonic]
    values: dict[str, Any] = {
        field.name: draw(BY_TYPE[str(field.type)]) for field in fields(kind) if field.name != "op"
    }
    return kind(**values, **({"op": AluOp(mnemonic)} if kind is Alu else {}))


items = st.one_of(
    st.builds(Nop, st.integers(1, 9999)),
    st.builds(Repeat, st.integers(1, 999), st.integers(1, 99)),
    st.builds(Named, instructions(), st.sampled_from(["", "layers.0.mlp.down_proj"])),
)
own = st.lists(items, max_size=6).map(tuple)
programs = st.builds(
    QueueProgram, whole, st.dictionaries(st.sampled_from(queues(CHIP)), own, max_size=4)
)


@st.composite
def patterned(draw: st.DrawFn) -> list[Issue]:
    """A queue's issues as lowering makes them: loops over a few Reads, with a step of their own."""
    loop = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 90), streams), max_size=5))
    step, out, cycle = draw(st.integers(0, 9)), list[Issue](), 0
    for turn in range(draw(st.integers(1, 12))):
        for gap, address, stream in loop:
            cycle += 1 + gap * draw(st.sampled_from([1, 1, 1, 9]))
            moved = Stream(stream.eastward, (stream.number + 11 * turn) % 32)
            read = Read(address=address + turn * step, stream=moved)
            out.append(Issue(mem(0, 0), cycle, read, name="a"))
    return out


def single(issues: list[Issue]) -> list[tuple[int, str]]:
    """Every issue by itself: its cycle and what is issued then, without the counter's step."""
    return sorted(
        (issue.cycle + i * issue.d, text_of(advanced(issue.instruction, i)).split(" step=")[0])
        for issue in issues for i in range(issue.n)
    )  # fmt: skip
