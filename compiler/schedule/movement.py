"""The messages between chips in a step: their senders and their destination addresses.

Each chip sends its columns of a result to all chips that need the whole. A value that every chip
of a group holds goes to the next group in pieces, one from each sender.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chip.ops.rows import row_bytes, segment_offsets
from chip.spec import VECTOR_BYTES
from compiler.ir import HostMemory, StepKind
from compiler.model.layer import entering
from compiler.model.operation import RESIDUAL, ROPE, GraphOp, Split
from compiler.place.buffers import HANDED
from compiler.place.network import Network, flows_between
from compiler.place.partition import Group, Partition

PIECE_VECTORS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A message: `vectors` from `src_address` on one node to an address on each target.

    `row`: of which it is the result, in a step of several.
    """

    name: str
    src: int
    src_address: int
    targets: tuple[tuple[int, int], ...]  # (node, address)
    vectors: int
    row: int | None = None


def vectors_of(n_bytes: int) -> int:
    return n_bytes // VECTOR_BYTES


def result_bytes(partition: Partition, rank: int, top_k: int) -> int:
    """Return the bytes of a row's result on a head chip: its logits, or its largest (id, logit)."""
    start, stop = partition.groups[-1].vocab[rank]
    return row_bytes(2 * min(top_k, stop - start) if top_k else stop - start, 4)


def hidden_vectors(partition: Partition, kind: StepKind) -> int:
    """Vectors of an encode step's result: its rows' hidden states, fp32."""
    return kind.rows * vectors_of(row_bytes(partition.config.hidden_size, 4))


def pieces(n_vectors: int, senders: int) -> list[tuple[int, int]]:
    """Cut a value that all chips of a group hold into a piece for each sender: (first, stop).

    Pieces count vectors. A hop's latency is worth some 30 vectors, so shorter pieces would not
    come sooner.
    """
    count = max(1, min(senders, n_vectors // PIECE_VECTORS))
    return [(n_vectors * n // count, n_vectors * (n + 1) // count) for n in range(count)]


def host_memory(partition: Partition, kind: StepKind, top_k: int) -> HostMemory:
    """Lay out the host's buffer: embedding rows, RoPE rows, then the results, chip by chip."""
    config = partition.config
    end = rope = kind.rows * row_bytes(config.hidden_size, 4)
    if ROPE in entering(config):
        end += kind.rows * row_bytes(config.head_dim, 4)
    results: dict[int, int] = {}
    if kind.decode:
        for rank, chip in enumerate(partition.groups[-1].chips):
            if size := result_bytes(partition, rank, top_k):
                results[chip] = end
                end += kind.rows * size
    elif kind.encode:
        chips, total = partition.groups[-1].chips, hidden_vectors(partition, kind)
        for chip, (first, _) in zip(chips, pieces(total, len(chips)), strict=False):
            results[chip] = end + first * VECTOR_BYTES
        end += total * VECTOR_BYTES
    else:
        results[partition.last_layers.chips[0]] = end
        end += VECTOR_BYTES
    return HostMemory(embedding=0, rope=rope, results=results, size=end)


def forward_rows(split: Partition, network: Network) -> dict[int, int]:
    """Return for each forwarding chip the bytes of the widest row that it passes on."""
    config = split.config
    residual, rope = row_bytes(config.hidden_size, 4), row_bytes(config.head_dim, 4)
    chosen = 1 if config.experts is None else config.experts.chosen
    widest: dict[int, int] = {}  # of what a chip sends
    for group in split.groups:
        first, stop = pieces(vectors_of(residual), len(group.chips))[-1]
        for rank, chip in enumerate(group.chips):
            sent = [
                each * row_bytes(group.shares(axis, config.head_dim)[rank], 2)
                for axis, each in ((Split.HEADS, 1), (Split.HIDDEN, 1), (Split.INTER, chosen))
            ]
            piece = VECTOR_BYTES * (stop - first)
            widest[chip] = max(*sent, piece, rope)
    return {
        chip: max(widest[source] for source, _ in flows)
        for chip, flows in network.forwarders().items()
    }


class Movement:
    """Appends the messages of one step to `items`. `buffers`: for each chip, name -> address."""

    def __init__(
        self, partition: Partition, network: Network, kind: StepKind, host: HostMemory,
        buffers: Sequence[Mapping[str, int]], items: list[Any],
    ) -> None:  # fmt: skip
        self.partition, self.network, self.kind = partition, network, kind
        self.host, self.buffers, self.items = host, buffers, items
        self.config = partition.config

    def send(
        self, name: str, src: tuple[int, int], targets: Sequence[tuple[int, int]],
        n_vectors: int, row: int | None = None,
    ) -> None:  # fmt: skip
        transfer = Transfer(
            name=name, src=src[0], src_address=src[1], targets=tuple(targets), vectors=n_vectors,
            row=row,
        )  # fmt: skip
        self.items.append(transfer)

    def enter(self, group: Group) -> None:
        """Send residual and RoPE rows from the host to the first group."""
        rows, host = self.kind.rows, self.partition.layout.chips
        for chip in group.chips:
            for name, offset, width in (
                (ROPE, self.host.rope, self.config.head_dim),
                (RESIDUAL, self.host.embedding, self.config.hidden_size),
            ):
                if name not in entering(self.config):
                    continue
                dst = (chip, self.buffers[chip][name])
                n_vectors = rows * vectors_of(row_bytes(width, 4))
                self.send(f"host.{name}", (host, offset), [dst], n_vectors)

    def hand_over(self, group: Group, after: Group, name: str) -> None:
        """Send residual and RoPE rows from a group, whose chips all hold them, to the next one.

        RoPE rows go last, because they are needed later.
        """
        rows = self.kind.rows
        flows = self.network.nearest_first(flows_between(group, after))
        residual = rows * vectors_of(row_bytes(self.config.hidden_size, 4))
        parts = [(name, RESIDUAL, piece) for piece in pieces(residual, len(flows))]
        senders = list(range(len(parts)))
        if len(after.layers) and ROPE in entering(self.config):
            rope = rows * vectors_of(row_bytes(self.config.head_dim, 4))
            parts.append((f"stage{after.index}.rope", ROPE, (0, rope)))
            senders.append(0)
        for sender, (what, buffer, (first, stop)) in zip(senders, parts, strict=True):
            (chip, peers), offset = flows[sender], first * VECTOR_BYTES
            targets = [(peer, self.buffers[peer][buffer] + offset) for peer in peers]
            src = (chip, self.buffers[chip][buffer] + offset)
            self.send(what, src, targets, stop - first)

    def exchange(self, group: Group, op: GraphOp, after: Group | None = None) -> None:
        """All-gather a result: each chip sends its segment to all others, or to the next group."""
        to, into = (group, op.output) if after is None else (after, HANDED)
        shares = group.shares(op.split, self.config.head_dim)
        offsets = segment_offsets(shares, self.kind.rows * op.each)
        flows = [flow for flow in flows_between(group, to) if flow[1]]
        for chip, peers in self.network.nearest_first(flows):
            rank = group.chips.index(chip)
            size = offsets[rank + 1] - offsets[rank]
            if size:
                src = (chip, self.buffers[chip][op.output] + offsets[rank])
                targets = [(peer, self.buffers[peer][into] + offsets[rank]) for peer in peers]
                self.send(op.name, src, targets, vectors_of(size))
