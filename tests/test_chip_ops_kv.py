"""Where keys and values lie: apart from each other, packed, never inside another's superlane."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chip.ops.kv import KvLayout

LAYOUTS = st.builds(
    KvLayout,
    kv_heads=st.integers(1, 12),
    head_dim=st.integers(1, 200).map(lambda half: 2 * half),
    context=st.integers(1, 12),
    dtype=st.sampled_from(["int8", "fp16"]),
)


def test_published_shapes() -> None:
    llama = KvLayout(kv_heads=2, head_dim=128, context=4096, dtype="int8")
    assert (llama.heads_per_group, llama.groups, llama.row_bytes) == (2, 1, 320)
    assert llama.scale_bytes == 4096 * 4 + 3840 % 320 or llama.scale_bytes % 320 == 0
    half = KvLayout(kv_heads=2, head_dim=128, context=4096, dtype="fp16")
    assert (half.heads_per_group, half.groups, half.scale_bytes) == (1, 2, 0)
    small = KvLayout(kv_heads=10, head_dim=20, context=7, dtype="int8")
    assert (small.head_bytes, small.heads_per_group, small.groups) == (32, 10, 1)
    large = KvLayout(kv_heads=1, head_dim=400, context=7, dtype="int8")
    assert (large.heads_per_group, large.row_bytes) == (1, 640)


@given(LAYOUTS)
def test_everything_has_a_place_of_its_own(layout: KvLayout) -> None:
    taken: set[int] = set()
    size = layout.head_dim * layout.item_bytes
    scales: set[int] = set()
    count = counted = 0
    for value in (False, True):
        for head in range(layout.kv_heads):
            at = layout.head_offset(head, value=value)
            assert at % 16 == 0
            for token in range(layout.context):
                start = at + token * layout.row_bytes
                taken.update(range(start, start + size))
                count += size
                if size <= 320:
                    assert start // 320 == (start + size - 1) // 320  # in one vector
            if layout.dtype == "int8":
                at = layout.scale_offset(head, value=value)
                assert at % 320 == 0
                scales.update(range(at, at + 4 * layout.context))
                counted += 4 * layout.context
    assert (len(taken), len(scales)) == (count, counted)
    assert max(taken) < layout.total_bytes
    assert max(scales, default=-1) < max(layout.scales_bytes, 1) - (layout.scales_bytes == 0)
    assert layout.total_bytes % (320 * 64) == 0  # windows that load into the planes


@given(LAYOUTS)
def test_attention_reads_no_more_than_there_is(layout: KvLayout) -> None:
    reads = [layout.read_bytes(bucket) for bucket in range(1, layout.context + 1)]
    assert reads == sorted(reads)
    assert reads[-1] <= layout.total_bytes + layout.scales_bytes
