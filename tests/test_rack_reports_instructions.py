"""What programs take as instructions, counted operation by operation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from schedules import compiled

from chip.encoding.binary import encode
from chip.isa.instructions import Read
from chip.isa.queues import to_queues
from compiler.errors import LoweringError
from rack.commands.plan import main
from rack.reports.instructions import step_issues, step_sizes


def test_operations_counted_apart_take_what_the_program_takes_and_little_more() -> None:
    """Every instruction is counted once; operations alike in shape count alike on every chip."""
    model = compiled("1x2", kinds="decode")
    step = model.steps["decode/32"]
    for program, size in zip(step.programs[:-1], step_sizes(model, step), strict=True):
        issues = step_issues(model, program)
        whole = len(encode(to_queues(issues), model.chip))
        assert size.instructions == sum(issue.n for issue in issues)
        assert whole < size.bytes < 5 * whole  # three layers are alike, and counted thrice
        assert size.bytes == sum(size.queue_bytes.values())
        assert size.reads == sum(i.n for i in issues if isinstance(i.instruction, Read))
        short = replace(step, cycles=1)
        with pytest.raises(LoweringError, match="decode/32: its instructions are "):
            size.fetching(short, model.chip)


def test_a_plan_with_its_programs(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny", "--layout", "1x1", "--max-model-len", "32", "--instructions"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["instructions"]
    assert found["step"] == "decode/32"
    assert 0 < found["bytes_per_chip"]["min"] <= found["bytes_per_chip"]["max"] < 1 << 20
    assert found["longest_queue"]["bytes"] < found["bytes_per_chip"]["max"]
    fetch = found["fetch"]
    assert 320 * fetch["vectors"] >= found["bytes_per_chip"]["max"]
    assert 0 < fetch["rate_cycles"] < fetch["cycles"]
    assert fetch["vectors"] < fetch["free_reads"] < 88 * fetch["cycles"]
    assert main(argv) == 0
    assert "program of decode/32" in capsys.readouterr().out
