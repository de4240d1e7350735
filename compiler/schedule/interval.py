"""The initiation interval of two steps that follow each other through the stages.

They are chunks of a prompt, or steps of different sequences. A step keeps the interval to every
step before it that is still under way, not only to the last: that may leave chips out. Steps may
overlap in time, but not on a chip. A chip begins the next step, its first arrival included, when it
has ended the one before. So two steps never share buffers, and vectors pass each link in order. The
verifier checks this from the operations (compiler/verify/verifier.py takes several steps with their
bases), and every chip checks it at run time.
"""

from __future__ import annotations

from compiler.ir import StepSchedule


def initiation_cycles(first: StepSchedule, then: StepSchedule) -> int:
    """Return the least cycles from the base of `first` to the base of its successor `then`."""
    chips = len(first.programs) - 1  # the host only sends at the start and receives at the end
    gaps = first.ends[:chips] - then.begins[:chips]
    return min(max(1, int(gaps.max())), first.cycles)
