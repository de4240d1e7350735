"""int8 attention of many rows: the bits, the cycles, and what stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from one_operation import CHIP, both, placed
from operation_grid import attention, data_for, name, positions_for
from plain_ops import cycles, kv_layout, operation_of, template

from compiler.codegen.attention.attend import attend, in_batches
from compiler.codegen.attention.many import Many, attend_many, fits

BERT_BASE, LLAMA_70B = (12, 12, 64), (8, 1, 128)  # of eight chips


def made(*shape: Any, **extra: Any) -> Any:
    return operation_of(*attention(*shape, **extra))


@pytest.mark.parametrize(
    ("shape", "extra"),
    [
        ((*BERT_BASE, 128, 18), {"horizon": 0}),  # three groups: two rounds; the last quad has two
        ((*BERT_BASE, 128, 16), {}),  # what rows see changes from quad to quad
        ((*LLAMA_70B, 128, 9), {}),  # two pieces a head, across vectors of results
        ((16, 2, 128, 160, 8), {}),
        ((10, 10, 32, 100, 13), {}),  # the last column is not full
        ((2, 1, 320, 100, 32), {}),  # a head fills a vector: four pieces
        ((12, 12, 64, 16, 16), {"horizon": 0}),  # no token in the east
        ((7, 7, 30, 90, 24), {"horizon": 0}),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_equals_the_kernel(shape: tuple[int, ...], extra: dict[str, Any]) -> None:
    opcode, a = attention(*shape, **extra)
    assert any(isinstance(one, Many) for one in template(opcode, a, CHIP).streams)
    a = placed(opcode, a, first=len(name((opcode, a))) % 2)
    (y,), _ = both(opcode, a, data_for(opcode, a), positions_for(a))
    results = np.frombuffer(y, np.float16).reshape(shape[4], -1)[:, : shape[0] * shape[2]]
    assert results.any(axis=1).all()
    assert results.std() > 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_no_row_may_see_may_be_anything(value: float) -> None:
    opcode, a = attention(*LLAMA_70B, 128, 8)
    a = placed(opcode, a)
    data, tokens = data_for(opcode, a), kv_layout(a).scale_bytes // 4
    scales = data["kvs"].reshape(-1, tokens)
    scales[:, 100:] = value
    (y,), _ = both(opcode, a, data, tuple(range(92, 100)))
    assert np.isfinite(np.frombuffer(y, np.float16)).all()


def test_an_encoder_takes_a_sixth_of_the_cycles() -> None:
    """BERT-base, 128 tokens: 48,747 in batches of rows."""
    op = made(*BERT_BASE, 128, 128, horizon=0)
    assert in_batches(op, CHIP).cycles > 48_000
    assert attend(op, CHIP).cycles <= 8_100


@pytest.mark.parametrize("rows", [8, 9, 16, 64])
@pytest.mark.parametrize("shape", [BERT_BASE, LLAMA_70B, (2, 1, 64)])
def test_is_never_longer_than_batches(shape: tuple[int, ...], rows: int) -> None:
    op = made(*shape, 128, rows)
    assert attend(op, CHIP).cycles <= in_batches(op, CHIP).cycles


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_few_rows_are_as_they_were(rows: int) -> None:
    op = made(*BERT_BASE, 128, rows)
    assert not fits(op, CHIP)
    opcode, a = attention(*BERT_BASE, 128, rows)
    assert cycles(opcode, a, CHIP) == in_batches(op, CHIP).cycles


def test_a_row_more_costs_no_more_than_its_quads() -> None:
    """Three groups of 5, 5 and 2 heads: a quad of rows takes a quad of each head."""
    some, more = (attend_many(made(*BERT_BASE, 128, rows, horizon=0), CHIP) for rows in (64, 128))
    assert more.cycles - some.cycles <= 16 * (12 * 16 + 64)


def test_results_that_two_groups_share() -> None:
    """Groups of heads end inside a vector of results: batches."""
    assert not fits(made(32, 8, 128, 128, 16), CHIP)
