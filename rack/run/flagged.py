"""Links that make mistakes, as a rack sees them: which do, and what they could not correct.

A chip that gets a flagged vector drops its frame and all that follow on the link, tells the host,
and waits. So the step of that frame never ends on it, nor does a later one; steps before it do.
`finish` of the first step that cannot end raises LinkFlaggedError, whenever the host hears of the
frame: which step it is follows from the errors alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chip.ops.moves import Receive
from compiler.ir import LinkUse, StepSchedule
from interconnect.bit_errors import ErrorSpec, NoisyEnd
from interconnect.frame import Frame
from rack.errors import LinkFlaggedError

if TYPE_CHECKING:  # a chip's process needs no compiler
    from compiler.pipeline import CompiledModel
    from rack.machines.hardware import Hardware

LinkErrors = Mapping[int, ErrorSpec]
"""Link id -> the errors of a link that makes some."""

Corrected = dict[str, int]
"""Link name -> the vectors with a wrong bit that were corrected at its end."""


def link_errors(compiled: CompiledModel, hardware: Hardware) -> dict[int, ErrorSpec]:
    """Return the errors of the links between chips. The host's are behind PCIe's own replay."""
    if not hardware.errs:
        return {}
    slots, out = compiled.network.binding, {}
    for link in compiled.network.links:
        if not link.is_host:
            errors = hardware.errors[hardware.link_kind(slots[link.src], slots[link.dst])]
            if errors.errs:
                out[link.id] = errors
    return out


def errors_notice(compiled: CompiledModel, errors: LinkErrors) -> str:
    """Say how many vectors come with errors, as the rates have it: of the longest step of a kind.

    A chunk of a prompt moves the most, so it is the first that cannot end where rates are high.
    """
    steps = sorted(compiled.steps.values(), key=lambda one: one.cycles)
    longest = {one.kind.decode: one for one in steps}
    return "LINKS MAKE ERRORS: " + "; ".join(
        _expected(longest[decode], errors) for decode in (True, False) if decode in longest
    )


def _expected(step: StepSchedule, errors: LinkErrors) -> str:
    """Say how many vectors of a step come with errors."""
    vectors, corrected, flagged = 0, 0.0, 0.0
    for program in step.programs:
        for one in program.operations:
            if isinstance(one.op, Receive) and one.op.link in errors:
                shares = errors[one.op.link].shares()
                vectors += one.op.vectors
                corrected += one.op.vectors * shares[0]
                flagged += one.op.vectors * shares[1]
    return (
        f"of the {vectors:,} vectors that a step {step.kind.name} moves over them about "
        f"{corrected:.3g} are corrected and {flagged:.3g} are flagged"
    )


def noisy_ends(links: Iterable[LinkUse], errors: LinkErrors) -> dict[int, NoisyEnd]:
    """Return the ends of those links that make errors."""
    return {link.id: NoisyEnd(link.id, errors[link.id]) for link in links if link.id in errors}


def flag(chip: int, frame: Frame) -> dict[str, Any]:
    """Return what a chip tells the host of a frame with vectors that cannot be corrected."""
    return {
        "chip": chip, "epoch": frame.epoch, "link": frame.link, "sequence": frame.step,
        "transfer": frame.transfer,
    }  # fmt: skip


def corrected(links: Sequence[LinkUse], counts: Iterable[tuple[int, int]]) -> Corrected:
    """Return (link, corrected vectors) by the links' names; links without are left out."""
    return {links[link].name: count for link, count in sorted(counts) if count}


class Flags:
    """The host's list of flagged frames, of one epoch."""

    def __init__(self, links: Sequence[LinkUse]) -> None:
        self._links = links
        self._taken: list[Mapping[str, Any]] = []

    def take(self, values: Mapping[str, Any]) -> None:
        """Take what a chip tells (`flag`)."""
        self._taken.append(values)

    def clear(self) -> None:
        """Begin an epoch."""
        self._taken.clear()

    def check(self, epoch: int, sequence: int, step: str) -> None:
        """Raise LinkFlaggedError if step number `sequence`, called `step`, can never end."""
        late = [one for one in self._taken if one["epoch"] == epoch and one["sequence"] <= sequence]
        if late:
            first = min(late, key=lambda one: (one["sequence"], one["transfer"], one["chip"]))
            raise LinkFlaggedError(
                chip=first["chip"], link=self._links[first["link"]].name, step=step,
                sequence=first["sequence"], transfer=first["transfer"],
            )  # fmt: skip
