"""fp16 products at other delays: what leaves the accumulators meets no product."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from one_operation import CHIP
from operation_grid import operand
from plain_ops import operation_of

from chip.ops.opcodes import Opcode
from compiler.codegen.core.control import one_by_one
from compiler.codegen.products.product16 import lay_out


@pytest.mark.parametrize("more", [0, 8, 9, 20])
def test_one_instruction_a_queue_and_cycle(more: int) -> None:
    """Half tiles follow every 11 cycles: an ACC of 11 or 22 would meet the next group's product."""
    chip = replace(CHIP, delays=tuple((n, f + more * (n == "ACC"), s) for n, f, s in CHIP.delays))
    shape = {"rows": 1, "k": 1000, "n": 1300, "out": "f32", "dtype": "fp16"}
    product = lay_out(operation_of(Opcode.MATMUL, operand(shape, "x w y")), chip)
    assert len(product.groups) > 2
    issues = one_by_one(product.issues(lambda _: 0), lambda _: 0, chip)
    issued = Counter((i.queue, i.cycle + n * i.d) for i in issues for n in range(i.n))
    assert set(issued.values()) == {1}
