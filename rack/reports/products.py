"""A product of many rows on one chip, as the compiler would run it: cycles, and use of the planes.

[m, k] x [k, n], weights in the bulk slices, rows in the feed slices, fp16 results in the work
slices (`compiler.pipeline.wide`). Rows that do not fit there together go in steps of equal size,
one after the other, as a prompt's chunks do. A step is one Matmul, and costs what its template
takes; nothing here is worked out twice.
"""

from __future__ import annotations

from chip.ops.product import Activations, Matmul, Plain
from chip.ops.rows import item_bytes, row_bytes
from chip.ops.weights import weight_bytes, weight_scale_bytes
from chip.spec import ChipSpec
from chip.sram import feed_start, work_start
from compiler.codegen.cost import cost_model
from compiler.errors import CapacityError, CompilerError
from compiler.pipeline import Options, wide

OUT_BYTES, SCALE_BYTES = 2, 4


def steps_of(m: int, k: int, n: int, dtype: str, spec: ChipSpec) -> list[int]:
    """Return the rows of each step.

    Raises CompilerError for sizes below 1, CapacityError where weights, or one row, do not fit.
    """
    if min(m, k, n) < 1:
        raise CompilerError(f"matmul: wanted m, k and n of 1 or more, got {m}, {k}, {n}")
    options = Options(dtype=dtype)
    rows, group = options.rows_dtype, options.group
    chip = wide(rows, spec)
    bulk, work = feed_start(chip), work_start(chip)
    weights, scales = weight_bytes(k, n, rows, group), 0
    if group is not None:  # in the bulk slices, beside the weights
        weights += weight_scale_bytes(k, n, group)
    elif dtype == "int8":
        scales = weight_scale_bytes(k, n, None)
    given, made = row_bytes(k, item_bytes(rows)), row_bytes(n, OUT_BYTES) + SCALE_BYTES
    room = [(given, work - bulk), (made, chip.sram_bytes - work - scales)]
    if not chip.feed_slices:
        room = [(given + made, chip.sram_bytes - work - scales)]
    for needed, available in ((weights, bulk), *room):
        if needed > available:
            raise CapacityError(
                chip=0, needed=needed, available=available, layout="1x1", context=m
            )  # fmt: skip
    steps = -(-m // min(available // needed for needed, available in room))
    return [m // steps + (number < m % steps) for number in range(steps)]


def product_cycles(m: int, k: int, n: int, dtype: str, spec: ChipSpec) -> int:
    """Return the cycles of all steps of a product."""
    options = Options(dtype=dtype)
    costs = cost_model(wide(options.rows_dtype, spec))
    scale = 0 if options.rows_dtype == "int8" else None
    return sum(
        costs.cycles(
            Matmul(
                rows=rows, k=k, n=n, dtype=options.rows_dtype, group=options.group, out="f16",
                w=0, sw=scale, source=Activations(x=0, s=scale), result=Plain(y=0),
            )
        )
        for rows in steps_of(m, k, n, dtype, spec)
    )  # fmt: skip


def utilisation(m: int, k: int, n: int, dtype: str, cycles: int, spec: ChipSpec) -> float:
    """Return the part of the planes' multiply-adds in these cycles that the product needs."""
    slower = spec.mxm_fp16_slowdown if dtype == "fp16" else 1
    peak = spec.mxm_planes * spec.mxm_rows * spec.mxm_columns
    return m * k * n * slower / (peak * cycles)
