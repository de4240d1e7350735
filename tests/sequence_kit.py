"""Steps of several sequences on a rack in this process, step by step."""

from __future__ import annotations

from collections.abc import Sequence

from rack.run.local import LocalRack
from rack.run.steps import StepOrder, StepResult

Row = tuple[int, int, int]
"""(slot, position, token)"""


def run(rack: LocalRack, name: str, rows: Sequence[Row]) -> list[StepResult]:
    """Run a step on rows of any slots; a decode step gives a result for each of them."""
    slots, positions, tokens = zip(*rows, strict=True)
    rack.start(
        StepOrder(
            name=name, base=rack.turns.base, slots=slots, positions=positions, tokens=tokens
        )
    )  # fmt: skip
    return rack.finish()


def prefill(rack: LocalRack, slot: int, tokens: Sequence[int], start: int = 0) -> None:
    """Run a sequence's tokens from `start` on in prefill steps."""
    model = rack.compiled
    for at in range(start, len(tokens), model.prefill_chunk):
        end = min(at + model.prefill_chunk, len(tokens))
        step = model.step(end - at, end, decode=False)
        run(rack, step.name, [(slot, place, tokens[place]) for place in range(at, end)])


def decode(rack: LocalRack, rows: Sequence[Row]) -> list[StepResult]:
    """Run one decode step for rows of different slots."""
    context = max(position for _, position, _ in rows) + 1
    return run(rack, rack.compiled.step(len(rows), context, decode=True).name, rows)


def bits(result: StepResult) -> tuple[int, bytes]:
    """Return a decode row's hash share and its logits, or the largest of them."""
    if result.top is not None:
        return result.hash_share, b"".join(part.tobytes() for part in result.top)
    assert result.logits is not None
    return result.hash_share, result.logits.tobytes()
