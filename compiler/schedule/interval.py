"""How soon a step may follow another: the initiation interval of pipelined prefill.

Chunks of a prompt follow each other through the stages. Steps may overlap in time, but not on a
chip: a chip begins the next one, its first arrival included, when it has ended the one before. So
buffers are never shared by two steps, and links see their vectors in order. The verifier checks the
same from the operations (compiler/verify/verifier.py takes several steps with their bases), and so
does every chip at run time.
"""

from __future__ import annotations

from compiler.ir import StepSchedule


def initiation_cycles(first: StepSchedule, then: StepSchedule) -> int:
    """Return the least distance of the bases of `first` and of `then`, which follows it."""
    chips = len(first.programs) - 1  # the host only sends at the start and receives at the end
    gaps = first.ends[:chips] - then.begins[:chips]
    return min(max(1, int(gaps.max())), first.cycles)
