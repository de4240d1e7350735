"""int8 ROPE: turned, quantised heads and their scales are the kernel's."""

from __future__ import annotations

import numpy as np
import pytest
from one_operation import both, placed
from plain_ops import cost

from chip.errors import TemplateError
from chip.ops.opcodes import Opcode
from chip.ops.rows import row_bytes
from rack.machines.profile import load_hardware


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "positions"),
    [
        (4, 2, 16, (5,)),
        (20, 5, 16, (3, 4)),  # scales of twenty heads: five times four
        (16, 2, 128, (63,)),  # more parts than registers keep
    ],
)
def test_equals_the_kernel(heads: int, kv_heads: int, dim: int, positions: tuple[int, ...]) -> None:
    rows = len(positions)
    shape = {
        "rows": rows, "heads": heads, "kv_heads": kv_heads, "head_dim": dim, "context": 64,
        "dtype": "int8",
    }  # fmt: skip
    names = dict.fromkeys(("qkv", "rope", "q", "sq", "kv", "kvs"), True)
    a = placed(Opcode.ROPE, {**shape, **names})
    rng, data = np.random.default_rng(dim), {}
    for name, n in (("qkv", (heads + 2 * kv_heads) * dim), ("rope", dim)):
        padded = np.zeros((rows, row_bytes(n, 4) // 4), np.float32)
        padded[:, :n] = rng.normal(size=(rows, n))
        data[name] = padded
    (q, sq, kv, kvs), _ = both(Opcode.ROPE, a, data, positions)
    assert any(q)
    assert any(kv)
    assert any(kvs)
    scales = np.frombuffer(sq, np.float32).reshape(rows, heads, 80)
    assert (scales > 0).all()
    assert (scales == scales[:, :, :1]).all()


def test_more_heads_than_the_alus_quantise_are_refused() -> None:
    shape = {
        "rows": 1, "dtype": "int8", "heads": 16, "kv_heads": 16, "head_dim": 2, "context": 32,
    }  # fmt: skip
    with pytest.raises(TemplateError) as caught:
        cost(Opcode.ROPE, shape, load_hardware("lesson").chip)
    assert str(caught.value) == (
        "ROPE of rows 1, dtype int8, heads 16, kv_heads 16, head_dim 2, context 32: no pace leaves "
        "enough ALUs"
    )
