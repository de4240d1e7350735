"""Speed of the reference executor: simulated chip-cycles per second of one core.

    python benchmarks/reference.py MODEL [--layout 1x1] [--hardware groqrack] [--steps 20]

MODEL is a folder or a preset (the tests' model is stories260K). Only busy cycles are counted: those
in which a queue issues something or a value is on its way, on every chip. Cycles that the machine
skips because nothing happens are not. Seconds are those of one core (CPU time: other processes do
not count). Lowering and resolving happen once, when a step first runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from chip.run.reference import ReferenceChip
from compiler.codegen.lower import lower
from compiler.model.frontend import resolve_model
from compiler.model.weights import WeightsRef
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from rack.machines.profile import load_hardware
from rack.run.job import build_chip, chip_job, links_of, ports_of
from rack.run.local import LocalRack


def loading(compiled: CompiledModel, weights: WeightsRef) -> None:
    """Print what lowering, resolving and binding the first chip's step takes."""
    (step,) = compiled.steps.values()
    program, links = step.programs[0], links_of(compiled, 0)
    chip = build_chip(
        replace(chip_job(compiled, 0, weights), executor="reference"), lambda *_: None
    )
    assert isinstance(chip, ReferenceChip)
    slots = {link.id: link.slot_cycles for link in links}
    start = time.process_time()
    issues = lower(program, spec=compiled.chip, ports=ports_of(links, 0), slots=slots)
    lowered = time.process_time()
    machine, _ = chip.machine(program)  # lowers once more
    resolved = time.process_time() - lowered - (lowered - start)
    print(
        f"chip 0, {step.name}: {len(issues):,} rows of issues lowered in {lowered - start:.2f} s, "
        f"resolved and bound in {resolved:.2f} s; {len(machine.actions):,} actions a step"
    )


def running(compiled: CompiledModel, weights: WeightsRef, steps: int) -> None:
    """Print cycles per second over `steps` decode steps."""
    (step,) = compiled.steps.values()
    rack = LocalRack(compiled, weights, executor="reference")
    try:
        rack.reset()
        rack.run_step(step.name, [0], [1])  # loads
        machines = []
        for node in rack.nodes:
            assert isinstance(node.chip, ReferenceChip)
            machines.append(node.chip.machines[step.name])
        busy = sum(machine.resolved.busy_cycles for machine in machines)
        span = sum(machine.resolved.cycles for machine in machines)
        spent = []
        for position in range(1, steps + 1):
            start = time.process_time()
            rack.run_step(step.name, [position], [position])
            spent.append(time.process_time() - start)
    finally:
        rack.close()
    median = sorted(spent)[len(spent) // 2]
    print(
        f"{steps} steps: {busy:,} busy of {span:,} chip-cycles a step in {median * 1e3:.1f} ms "
        f"(median): {busy / median:,.0f} busy cycles a second"
    )


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--layout", default="1x1")
    parser.add_argument("--hardware", default="groqrack")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    model = resolve_model(args.model)
    context = args.steps + 1
    compiled = compile_model(
        model.config, load_hardware(args.hardware), parse_layout(args.layout),
        Options(max_model_len=context, buckets=(context,)), kinds="decode",
    )  # fmt: skip
    loading(compiled, model.weights_ref)
    running(compiled, model.weights_ref, args.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
