"""The cycles of a mixture's two programs, for each row count: `rack.plan` shows them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from chip.ops.experts import ExpertsEach, ExpertsSum, programs
from compiler.ir import StepSchedule
from compiler.pipeline import CompiledModel, prefill_sizes


def expert_programs(compiled: CompiledModel, schedule: StepSchedule) -> dict[str, Any] | None:
    """Return what experts of a layer take by each program, by rows; None without a mixture.

    `chosen`: the weights of each row's experts are read. `all`: those of every expert, once. They
    are of the slowest chip. A step has the shorter one.
    """
    experts = compiled.config.experts
    if experts is None:
        return None
    rows = sorted({1, *prefill_sizes(compiled.prefill_chunk)})
    cycles = {str(count): _cycles(compiled, schedule, count) for count in rows}
    return {**asdict(experts), "cycles_per_layer": cycles}


def _cycles(compiled: CompiledModel, schedule: StepSchedule, rows: int) -> dict[str, int]:
    both = {"chosen": 0, "all": 0}
    for kind in (ExpertsEach, ExpertsSum):
        found = {
            replace(item.op, rows=rows)
            for program in schedule.programs for item in program.operations
            if isinstance(item.op, kind)
        }  # fmt: skip
        for number, name in enumerate(both):
            both[name] += max(compiled.costs.cycles(programs(op)[number]) for op in found)
    return both


def expert_lines(report: dict[str, Any]) -> list[str]:
    """Return the figures as lines of text."""
    each = ", ".join(
        f"{rows} rows {both['chosen']:,} | {both['all']:,}" if rows != "1"
        else f"1 row {both['chosen']:,} | {both['all']:,}"
        for rows, both in report["cycles_per_layer"].items()
    )  # fmt: skip
    return [
        f"experts: {report['chosen']} of {report['count']} a row; cycles a layer by reading the "
        f"chosen ones' weights | all: {each}; steps have the shorter"
    ]
