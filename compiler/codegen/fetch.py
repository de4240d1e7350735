"""Whether a program's text finds its way from memory to the queues while the program runs.

An IFETCH takes a pair of vectors off a stream (chip/isa/control.py); they are read where other
vectors are read, so a step needs as many cycles of slices' read ports as its text has vectors. All
queues together take at most 2.25 KiB a cycle (ISCA 2020, III.A.3: 2.25 TiB/s at 1 GHz). Both are
held against a whole step here. Fetches are not placed on their cycles (docs/decisions/0006).
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.floorplan import queues
from chip.spec import VECTOR_BYTES, ChipSpec
from compiler.errors import LoweringError

QUEUE_BYTES = 16  # of text that a queue takes in a cycle: 144 of them make 2.25 KiB
PAIR = 2  # vectors of a fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetching:
    """What fetching a step's text takes of a chip, and what there is."""

    vectors: int  # pairs of each queue, whole
    free_reads: int  # cycles of slices' ports in which the program does not read
    rate_cycles: int  # that the queues take at their rate
    cycles: int  # of the step


def fetching(
    queue_bytes: dict[str, int], reads: int, cycles: int, spec: ChipSpec, name: str
) -> Fetching:  # fmt: skip
    """Return what a chip's program takes. Raises LoweringError where text does not fit its step.

    `queue_bytes`: of text, by queue; `reads`: vectors that the program reads itself.
    """
    pair = PAIR * VECTOR_BYTES
    vectors = sum(PAIR * -(-size // pair) for size in queue_bytes.values())
    rate = QUEUE_BYTES * len(queues(spec))
    out = Fetching(
        vectors=vectors, free_reads=spec.slices * cycles - reads,
        rate_cycles=-(-sum(queue_bytes.values()) // rate), cycles=cycles,
    )  # fmt: skip
    if out.vectors > out.free_reads:
        raise LoweringError(
            f"{name}: its instructions are {out.vectors:,} vectors, and ports of slices are free "
            f"for {out.free_reads:,} in {cycles:,} cycles"
        )
    if out.rate_cycles > cycles:
        raise LoweringError(
            f"{name}: queues take its instructions in {out.rate_cycles:,} cycles or more, and it "
            f"runs for {cycles:,}"
        )
    return out
