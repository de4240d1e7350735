"""The LSTM cell of the published single-chip result, as a program of one operation.

A check of the chip's model, not a model that the rack runs: the cell's graph is one operation whose
template (compiler/codegen/lstm.py) is made and lowered like any other. Numbers: docs/hardware.md,
Single-chip results.
"""

from __future__ import annotations

from chip.isa.issue import Issue, delays
from chip.ops.kv import WINDOW_VECTORS
from chip.spec import VECTOR_BYTES, ChipSpec, vectors
from chip.sram import work_start
from compiler.codegen.core.bind import bind
from compiler.codegen.core.template import laid_out
from compiler.codegen.lower import bases_of
from compiler.codegen.lstm import Lstm, columns_of, lstm
from compiler.errors import CapacityError, CompilerError

GATES = 4


def cell(hidden: int, batch: int, spec: ChipSpec, scale: float = 2.0**-12) -> Lstm:
    """Return the cell's operation: shape, and addresses of w, x ([x, h] rows), c and h.

    Raises CompilerError for sizes below 1 or more rows than the accumulators hold, CapacityError
    for weights that do not fit.
    """
    if hidden < 1 or batch < 1:
        raise CompilerError(f"lstm: wanted hidden and batch of 1 or more, got {hidden}, {batch}")
    tiles = vectors(hidden)
    rows = batch * tiles
    if rows > spec.mxm_accumulator_rows:
        raise CompilerError(
            f"lstm: wanted batch x {tiles} column groups of at most {spec.mxm_accumulator_rows} "
            f"accumulator rows, got {rows}"
        )
    work = work_start(spec)
    weights = sum(b.width for group in columns_of(hidden, 2 * tiles) for b in group) * 2 * tiles
    needed = -(-weights // WINDOW_VECTORS) * WINDOW_VECTORS * VECTOR_BYTES
    if needed > work:
        raise CapacityError(chip=0, needed=needed, available=work, layout="1x1", context=0)
    x = work
    c = x + rows * 2 * VECTOR_BYTES
    h = c + rows * 4 * VECTOR_BYTES
    return Lstm(hidden=hidden, rows=batch, scale=scale, w=0, x=x, c=c, h=h)


def cell_cycles(hidden: int, batch: int, spec: ChipSpec) -> int:
    """Cycles of one cell step, from the barrier that its program begins with (ISCA 2020, III.A.2).

    More sequences than the accumulators hold run in rounds, a program each.
    """
    table = delays(spec)
    barrier = table["NOTIFY"].d_func + table["SYNC"].d_func
    most = max(1, spec.mxm_accumulator_rows // vectors(max(hidden, 1)))
    full, rest = divmod(batch, most) if batch > 0 else (0, batch)  # `cell` refuses it
    rounds = [(full, most)] * (full > 0) + [(1, rest)] * (rest != 0 or full == 0)
    with laid_out("lstm"):
        programs = [(n, lstm(cell(hidden, rows, spec), spec)) for n, rows in rounds]
    return sum(n * (barrier + program.cycles) for n, program in programs)


def lower_cell(op: Lstm, spec: ChipSpec) -> list[Issue]:
    """Return the cell's instructions."""
    with laid_out("lstm"):
        template = lstm(op, spec)
    return bind(template, bases_of(op), {}, spec)
