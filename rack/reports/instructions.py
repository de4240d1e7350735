"""What programs take as instructions (`rack.plan --instructions`), and a chip's whole step lowered.

Counted operation by operation, each as chip/encoding/binary.py encodes it by itself: operations of
one shape differ in addresses alone and are lowered once for all chips. What operations of a program
have in common (permutations, repeated rows) is counted with each, so a whole program takes less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from chip.encoding.binary import measured
from chip.isa.instructions import Gather, Read
from chip.isa.issue import Issue
from chip.isa.queues import to_queues
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import shape_of
from chip.ops.program import Program
from chip.spec import ChipSpec
from compiler.codegen.fetch import Fetching, fetching
from compiler.codegen.lower import lower, lower_operation
from compiler.codegen.lower_links import place_transfers
from compiler.ir import StepSchedule
from compiler.pipeline import CompiledModel
from rack.run.job import links_of, ports_of


@dataclass(frozen=True, slots=True)
class ProgramSize:
    """One chip's program of one step: bytes by queue and of "maps", and instructions in all."""

    queue_bytes: Counter[str]
    instructions: int
    reads: int  # vectors that it reads

    @property
    def bytes(self) -> int:
        return sum(self.queue_bytes.values())

    def fetching(self, step: StepSchedule, spec: ChipSpec) -> Fetching:
        """Return what fetching it takes. Raises LoweringError where it does not fit its step."""
        return fetching(self.queue_bytes, self.reads, step.cycles, spec, step.name)


def step_issues(compiled: CompiledModel, program: Program) -> list[Issue]:
    """Return all instructions of a chip's step. Raises LoweringError."""
    ports, slots = _links(compiled, program)
    return lower(program, spec=compiled.chip, ports=ports, slots=slots)


def step_sizes(compiled: CompiledModel, step: StepSchedule) -> list[ProgramSize]:
    """Return every chip's program size in a step. Raises LoweringError."""
    sizes: dict[object, ProgramSize] = {}
    out = []
    for program in step.programs[:-1]:  # the last is the host's
        ports, slots = _links(compiled, program)
        parts = [_size(place_transfers(program, compiled.chip, [], ports, slots))]
        for operation in program.operations:
            op = operation.op
            if isinstance(op, Send | Receive):
                continue
            if (shape := shape_of(op)) not in sizes:
                sizes[shape] = _size(lower_operation(operation, compiled.chip))
            parts.append(sizes[shape])
        out.append(_total(parts))
    return out


def _links(compiled: CompiledModel, program: Program) -> tuple[dict[int, int], dict[int, int]]:
    links = links_of(compiled, program.chip)
    return ports_of(links, program.chip), {link.id: link.slot_cycles for link in links}


def _size(issues: Iterable[Issue]) -> ProgramSize:
    issues = list(issues)
    reads = sum(issue.n for issue in issues if isinstance(issue.instruction, Read | Gather))
    return ProgramSize(
        Counter(measured(to_queues(issues))), sum(issue.n for issue in issues), reads
    )


def _total(parts: Iterable[ProgramSize]) -> ProgramSize:
    queues, instructions, reads = Counter[str](), 0, 0
    for part in parts:
        queues.update(part.queue_bytes)
        instructions += part.instructions
        reads += part.reads
    return ProgramSize(queues, instructions, reads)
