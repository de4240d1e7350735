"""`python -m rack.disasm DIR --chip N --op NAME`: the instructions of an artifact's chips.

`--op` lists those of an operation or transfer, `--queue` those of one instruction queue in the
whole step. Cycles are relative to the step; the text assembles again (chip/isa/assembly.py).
Without both flags the chip's scheduled operations are listed. `--draw` draws an operation's
instructions instead of listing them.
"""

from __future__ import annotations

import argparse

from chip.floorplan import parse_queue
from chip.isa.assembly import disassemble
from chip.isa.issue import Issue
from chip.isa.queues import QueueProgram, to_queues
from chip.ops.program import MOVES, Program, Scheduled
from compiler.codegen.lower import lower_operation
from compiler.pipeline import CompiledModel
from compiler.place.layout import MOST_CHIPS
from rack.commands.command import UsageError, command
from rack.commands.flags import count, verb_parser
from rack.errors import ConfigError
from rack.reports.instructions import step_issues
from rack.reports.pictures import PICTURES, picture_kind
from rack.run.config import RunConfig
from rack.run.stored import load_stored
from rack.system.output import check_file, writing
from rack.system.progress import say
from rack.system.shell import put


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.disasm`."""
    parser = verb_parser("disasm")
    parser.add_argument("folder", metavar="DIR", help="an artifact of rack.compile")
    group = parser.add_argument_group("what is shown")
    group.add_argument(
        "--chip", type=count(MOST_CHIPS), default=0, metavar="N", help="logical chip (default 0)"
    )
    shown = group.add_mutually_exclusive_group()
    shown.add_argument("--op", metavar="NAME", help="an operation, layers.0.mlp.down_proj")
    shown.add_argument(
        "--queue", metavar="QUEUE", help="all that a queue issues: SXM_E8, VXM3, ..."
    )
    group.add_argument("--step", metavar="NAME", help="default: the smallest decode step")
    group.add_argument(
        "--draw", metavar="FILE", help=f"draw the operation here, as {', '.join(PICTURES)}"
    )
    return parser


@command(build_parser)
def main(args: argparse.Namespace) -> None:
    """Print or draw an operation, print a queue or the list of operations."""
    if args.draw is not None:
        if args.op is None:
            raise UsageError("--draw: wanted an operation to draw (--op NAME), got none")
        picture_kind(args.draw)
        check_file(args.draw, "a picture")
    _, _, compiled, _ = load_stored(RunConfig(model=args.folder), runs=False)
    name = args.step or next(iter(compiled.steps))
    if name not in compiled.steps:
        raise ConfigError(f"step: wanted one of {', '.join(compiled.steps)}, got {name!r}")
    chips = compiled.layout.chips
    if not 0 <= args.chip < chips:
        raise ConfigError(f"chip: wanted 0 to {chips - 1}, got {args.chip}")
    program = compiled.steps[name].programs[args.chip]
    if args.draw is not None:
        title = write_picture(compiled, program, args.op, args.draw)
        say(f"{args.draw}: {title}")
        return
    if args.op is not None:
        text = listing(compiled, program, args.op)
    elif args.queue is not None:
        text = queue_listing(compiled, program, args.queue)
    else:
        text = str(program)
    put(text)


def listing(compiled: CompiledModel, program: Program, name: str) -> str:
    """Return every operation of that name: its line in the schedule, then the instructions.

    Raises ConfigError if the program has none.
    """
    parts = []
    for operations, issues in lowered(compiled, program, name):
        parts += [*map(str, operations), disassemble(to_queues(issues))]
    return "\n".join(parts)


def lowered(
    compiled: CompiledModel, program: Program, name: str
) -> list[tuple[list[Scheduled], list[Issue]]]:
    """Return the operations of that name with their instructions. Raises ConfigError for none.

    The place of a transfer's instructions depends on all others, so the whole step is lowered.
    """
    found = [operation for operation in program.operations if operation.name == name]
    if not found:
        raise ConfigError(
            f"op: chip {program.chip} has no {name!r} in step {program.step}; without --op its "
            f"operations are listed"
        )
    if any(operation.opcode in MOVES for operation in found):
        issues = [issue for issue in step_issues(compiled, program) if issue.name == name]
        return [(found, issues)]
    return [([one], lower_operation(one, compiled.chip)) for one in found]


def write_picture(compiled: CompiledModel, program: Program, name: str, path: str) -> str:
    """Draw the operations of that name; return the picture's title. Raises ConfigError."""
    from rack.reports.template_picture import draw  # heavy, and only this needs it

    parts = lowered(compiled, program, name)
    first, last = parts[0][0][0], parts[-1][0][-1]
    cycles = last.end - first.start
    drawn = dict.fromkeys(one.opcode for operations, _ in parts for one in operations)
    what = ", ".join(map(str, drawn))
    title = f"{name}, {what} on chip {program.chip}, {program.step}: {cycles:,} cycles"
    issues = [issue.moved(-first.start) for _, issues in parts for issue in issues]
    picture = draw(issues, compiled.chip, title, picture_kind(path))
    with writing(path, "a picture") as file:
        file.write(picture)
    return title


def queue_listing(compiled: CompiledModel, program: Program, name: str) -> str:
    """Return all instructions of a queue in a step. Raises ConfigError if it is idle."""
    try:
        queue = parse_queue(name, compiled.chip)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    whole = to_queues(step_issues(compiled, program))
    if queue not in whole.queues:
        raise ConfigError(f"queue: {name} of chip {program.chip} is idle in step {program.step}")
    return disassemble(QueueProgram(whole.origin, {queue: whole.queues[queue]}))
