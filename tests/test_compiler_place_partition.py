"""How a model is dealt: everything once (KV heads at least once), in whole superlanes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.errors import LayoutError
from compiler.model.graph import build_graph
from compiler.model.operation import Kind, Split
from compiler.model.presets import PRESETS
from compiler.place.layout import Layout, parse_layout
from compiler.place.partition import deal, deal_heads, partition, weight_of

TINY = PRESETS["tiny"]


@given(st.integers(0, 5000), st.integers(1, 40), st.sampled_from([1, 16]))
def test_deal_covers_everything_once(total: int, ranks: int, unit: int) -> None:
    spans = deal(total, ranks, unit)
    assert len(spans) == ranks
    assert spans[0][0] == 0
    assert spans[-1][1] == total
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    sizes = [stop - start for start, stop in spans]
    assert all(size >= 0 for size in sizes)
    assert all(start % unit == 0 or start == total for start, _ in spans)
    assert max(sizes) - min(sizes) < 2 * unit


@given(st.integers(1, 9), st.integers(1, 8), st.integers(1, 40))
def test_heads_find_their_kv_heads(kv_heads: int, per_kv: int, ranks: int) -> None:
    queries, kv = deal_heads(kv_heads * per_kv, kv_heads, ranks)
    dealt = [head for start, stop in queries for head in range(start, stop)]
    assert dealt == list(range(kv_heads * per_kv))
    for (start, stop), (first, last) in zip(queries, kv, strict=True):
        needed = {head // per_kv for head in range(start, stop)}
        assert needed == set(range(first, last))  # no more, and none without queries


@pytest.mark.parametrize("name", ["tiny", "tiny-wide", "llama-8b"])
@pytest.mark.parametrize("layout", ["1x1", "2x3+2", "1x13", "2x16+5"])
def test_every_weight_row_is_held_as_often_as_it_must(name: str, layout: str) -> None:
    config = PRESETS[name]
    split = partition(build_graph(config), parse_layout(layout))
    for group in split.groups:
        for op in split.ops(group):
            if op.kind is not Kind.LINEAR:
                continue
            held = [weight_of(config, group, rank, op) for rank in range(len(group.chips))]
            for tensor in op.weights:
                spans = [p for w in held for p in w.pieces if p.tensor == tensor]
                rows = sorted({row for p in spans for row in range(p.start, p.stop)})
                assert rows == list(range(len(rows)))
                total = sum(p.stop - p.start for p in spans)
                assert total == len(rows) or "k_proj" in tensor or "v_proj" in tensor
            once = sum(len({r for w in held for p in w.pieces if p.tensor == t
                            for r in range(p.start, p.stop)}) for t in op.weights)  # fmt: skip
            assert once == op.features
            assert {weight.k for weight in held} == {op.in_features}


def test_layers_are_dealt_in_order_and_the_head_is_last() -> None:
    split = partition(build_graph(PRESETS["llama-8b"]), parse_layout("5x2+3"))
    assert [len(group.layers) for group in split.groups] == [6, 6, 7, 6, 7, 0]
    assert [i for group in split.groups for i in group.layers] == list(range(32))
    assert [group.has_head for group in split.groups] == [False] * 5 + [True]
    assert split.last_layers is split.groups[4]
    shared = partition(build_graph(TINY), parse_layout("2x1"))
    assert shared.last_layers is shared.groups[-1]
    assert shared.groups[-1].has_head
    assert [rank for _, rank in split.groups_of(11)] == [1]


def test_shares() -> None:
    group = partition(build_graph(TINY), parse_layout("1x3")).groups[0]
    assert group.shares(Split.HIDDEN, 16) == (16, 16, 32)
    assert group.shares(Split.INTER, 16) == (48, 64, 60)
    assert sum(group.shares(Split.HEADS, 16)) == 64
    with pytest.raises(KeyError):
        group.spans(Split.QKV)


def test_more_stages_than_layers() -> None:
    with pytest.raises(LayoutError) as caught:
        partition(build_graph(TINY), Layout(stages=4, group=1))
    assert str(caught.value) == (
        "layout 4x1: 4 stages, but tiny has 3 layers; at least one layer a stage"
    )
    partition(build_graph(replace(TINY, num_layers=4)), Layout(stages=4, group=1))


def test_an_operation_without_a_matrix() -> None:
    split = partition(build_graph(TINY), parse_layout("1x1"))
    norm = split.graph.layers[0][0]
    with pytest.raises(
        ValueError, match=r"^layers\.0\.input_layernorm: norm has no weight matrix$"
    ):
        weight_of(TINY, split.groups[0], 0, norm)
