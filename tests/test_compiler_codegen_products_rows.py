"""int8 products of several rows: paces, room for sums, and bits on chips of each kind."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_operation import CHIP, both, placed
from operation_grid import data_for, operand
from plain_ops import operation_of, template

from chip.errors import TemplateError
from chip.ops.opcodes import Opcode
from chip.ops.product import Matmul
from chip.spec import ChipSpec, vectors
from compiler.codegen.core.clock import Clock
from compiler.codegen.products.activations import copies_before
from compiler.codegen.products.paces import BESIDE_PORTS, BESIDE_STREAMS, Pace, Tile, soonest
from compiler.codegen.products.rows import RowsProduct, lay_out
from compiler.codegen.products.sums import ARRIVAL

ONE_FEED = replace(CHIP, work_slices=2, feed_slices=1)
TWO_FEED = replace(CHIP, work_slices=2, feed_slices=2)
CHIPS = {"no feed slices": CHIP, "one feed slice": ONE_FEED, "two feed slices": TWO_FEED}
EVERY = [
    *BESIDE_PORTS.shared, *BESIDE_PORTS.alone, *BESIDE_STREAMS.shared, *BESIDE_STREAMS.alone,
    BESIDE_STREAMS.between,
]  # fmt: skip


def case(rows: int, k: int, n: int, out: str = "f32", *, bias: bool = False) -> dict[str, object]:
    shape = {"rows": rows, "k": k, "n": n, "out": out, "dtype": "int8"}
    return operand(shape, "x s w sw y b" if bias else "x s w sw y")


def product(rows: int, k: int, n: int, spec: ChipSpec, out: str = "f32") -> RowsProduct:
    op = operation_of(Opcode.MATMUL, case(rows, k, n, out))
    assert isinstance(op, Matmul)
    return lay_out(op, spec)


@given(st.sampled_from(EVERY), st.integers(1, 200))
def test_lanes_and_bursts_are_all_rows_once(pace: Pace, rows: int) -> None:
    offsets = {row: pace.offset(row) for row in range(rows)}
    assert offsets[0] == 0
    assert all(before < after for before, after in pairwise(offsets.values()))
    assert pace.cycles(rows) == offsets[rows - 1] + 1
    lanes = [
        (row + n * pace.burst, late + n * apart)
        for row, late, count, apart in pace.lanes(rows) for n in range(count)
    ]  # fmt: skip
    bursts = [
        (row + n, late + n * apart)
        for row, late, count, apart in pace.bursts(rows) for n in range(count)
    ]  # fmt: skip
    assert sorted(lanes) == bursts == list(offsets.items())


@given(st.integers(0, 100), st.integers(0, 3), st.integers(1, 200), st.integers(1, 24))
def test_tiles_beside_sums_leave_the_same_cycle_of_every_turn(
    at: int, phase: int, rows: int, load: int
) -> None:
    gaps = set[int]()
    for _ in range(5):
        tile = soonest(BESIDE_STREAMS.shared, at, phase, rows, load)
        assert at <= tile.fed <= at + 1
        gaps |= {(tile.fed + tile.pace.offset(row) - phase) % 4 for row in range(rows)}
        at = tile.next(rows, load)
        assert at >= tile.fed + load
    assert 3 not in gaps


def test_of_two_paces_the_one_that_ends_first_is_taken() -> None:
    """Without a drain: every second cycle, or seven of eight, which begin with a turn."""
    few, many = (soonest(BESIDE_PORTS.alone, 11, 21, rows, 24) for rows in (8, 40))
    assert few == Tile(11, BESIDE_PORTS.alone[0])
    assert many == Tile(13, BESIDE_PORTS.alone[1])
    assert few.next(8, 24) == 35
    assert many.next(40, 24) == 13 + 5 * 8 + 5 + 1


@pytest.mark.parametrize("spec", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize(
    ("rows", "k", "n", "out", "bias"),
    [
        (2, 100, 2000, "f32", False),  # groups of blocks, and a narrow one
        (5, 2240, 1600, "f32", False),  # tiles beside the drain before, tiles without
        (9, 700, 1300, "f16", True),
        (16, 64, 2880, "f32", False),  # sums take longer to leave than to add
        (16, 2240, 1280, "f16", False),  # one group: its sums leave between its last products
        (24, 1000, 640, "f32", True),
        (33, 1280, 1600, "f32", False),  # rows take longer than loads
        (170, 330, 336, "f16", False),  # two passes
    ],
)
def test_bits(rows: int, k: int, n: int, out: str, bias: bool, spec: ChipSpec) -> None:
    a = placed(Opcode.MATMUL, case(rows, k, n, out, bias=bias), first=rows % 2, spec=spec)
    assert template(Opcode.MATMUL, a, spec).lowered
    results, _ = both(Opcode.MATMUL, a, data_for(Opcode.MATMUL, a), (0,) * rows, spec)
    assert all(any(result) for result in results)


@pytest.mark.parametrize("spec", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("rows", [2, 3, 4, 6, 8, 12, 16, 17, 19, 24, 32, 48, 81])
def test_lawful(rows: int, spec: ChipSpec) -> None:
    shapes = ((330, 1300, "f16"), (4096, 512, "f32"), (4096, 1280, "f32"), (64, 2880, "f32"))
    for k, n, out in shapes:
        template(Opcode.MATMUL, case(rows, k, n, out), spec)


@pytest.mark.parametrize(
    ("spec", "rows", "k", "n", "most"),
    [
        (TWO_FEED, 8, 4096, 28_672, 1.25), (TWO_FEED, 16, 4096, 28_672, 1.25),
        (ONE_FEED, 32, 14_336, 5120, 1.15), (ONE_FEED, 64, 4096, 28_672, 1.25),
        (CHIP, 8, 4096, 28_672, 1.25), (CHIP, 64, 14_336, 5120, 1.5),
    ],
)  # fmt: skip
def test_within_what_loads_or_rows_take(
    spec: ChipSpec, rows: int, k: int, n: int, most: float
) -> None:
    """A tile of 320 columns a plane is loaded in 20 cycles, and takes a row a cycle."""
    least = vectors(k) * n / 1280 * max(20, rows)
    assert product(rows, k, n, spec).end <= most * least


@pytest.mark.parametrize("spec", [ONE_FEED, TWO_FEED], ids=["one feed slice", "two feed slices"])
def test_rows_leave_room_only_beside_sums(spec: ChipSpec) -> None:
    """Tiles before the first sums, and behind a group's last, take a row a cycle."""
    found = product(32, 4096, 2560, spec)
    first, second = ([tile.pace.turn for tile in loads.tiles] for loads in found.loads)
    assert set(first) == {1}
    ended = second.index(1)
    assert set(second[:ended]) == {4}
    assert set(second[ended:-1]) == {1}
    assert second[-1] in (1, 4)
    last_sums = found.drains[1].start + found.groups[0].pace * 31 + ARRIVAL
    fed = found.loads[1].fed(ended - 1)
    assert fed - found.lead <= last_sums < found.loads[1].fed(ended)


def test_copies_make_activations_miss_the_sums() -> None:
    """Their way through VXM and planes, and that of the sums back, is whole turns."""
    clock = Clock(CHIP)
    for turn in (2, 4):
        copies = copies_before(clock, turn)
        way = copies + 1 + 2 * clock.to_mxm + sum(clock.of[n] for n in ("ABC", "ACC", "PERMUTE"))
        assert way % turn == 0


def test_no_copies_make_it() -> None:
    chip = replace(
        CHIP, delays=tuple((name, 2 * (name == "COPY") or cycles + (name == "ABC"), skew)
                           for name, cycles, skew in CHIP.delays),
    )  # fmt: skip
    with pytest.raises(TemplateError) as caught:
        template(Opcode.MATMUL, case(2, 64, 64), chip)
    assert str(caught.value) == (
        "matmul: no instructions can be laid out on this chip: copies of 2 cycles do not fill 61 "
        "to a multiple of 2"
    )
