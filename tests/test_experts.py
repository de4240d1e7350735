"""A mixture of experts: its two programs, cycles that no route changes, lists that are refused."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int_model import IntLlama
from safetensors.numpy import load_file, save_file
from schedules import check, edit, find, machine

from chip.kernels import load
from chip.ops.experts import ExpertsEach, ExpertsSum, expert_stride, programs
from chip.ops.opcodes import Opcode
from chip.ops.program import Scheduled
from chip.ops.rows import row_bytes
from compiler.errors import ScheduleError
from compiler.ir import StepSchedule
from compiler.model.frontend import Model, resolve_model
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from rack.reports.experts import expert_lines, expert_programs
from rack.run.local import LocalRack

GOLDENS = Path(__file__).parent / "goldens"
CONTEXT = 64
STEP = f"decode/{CONTEXT}"


@lru_cache(maxsize=4)
def compiled(
    name: str = "mixtral", layout: str = "1x2", dtype: str = "int8"
) -> tuple[Model, CompiledModel]:
    model = resolve_model(str(GOLDENS / name))
    options = Options(dtype=dtype, max_model_len=CONTEXT, prefill_chunk=16, buckets=(CONTEXT,))
    return model, compile_model(model.config, machine("lesson"), parse_layout(layout), options)


def experts_of(schedule: StepSchedule) -> list[ExpertsEach | ExpertsSum]:
    return [
        item.op
        for program in schedule.programs
        for item in program.operations
        if isinstance(item.op, ExpertsEach | ExpertsSum)
    ]


# -- two programs


def test_each_step_has_the_shorter_program() -> None:
    _, model = compiled()
    ways = {}
    for schedule in model.steps.values():
        ops = experts_of(schedule)
        assert len(ops) == 2 * 2 * 3  # both products of 3 layers on 2 chips
        for op in ops:
            cycles = [model.costs.cycles(one) for one in programs(op)]
            assert model.costs.cycles(op) == min(cycles)
        ways[schedule.kind.rows] = {op.every for op in ops}
    assert ways[1] == {False}  # 2 of 8 experts: a quarter of the weights
    assert ways[16] == {True}  # 32 loads of weights, or 8


def test_weights_that_a_program_reads() -> None:
    (op, *_) = experts_of(compiled()[1].steps[STEP])
    chosen, every = (replace(one, rows=3) for one in programs(op))
    matrix = op.n * row_bytes(op.k + -op.k % 320, 1)
    assert (chosen.weight_bytes, every.weight_bytes) == (3 * 2 * matrix, 8 * matrix)


def test_plan_shows_both_programs() -> None:
    _, model = compiled()
    schedule = model.steps[STEP]
    report = expert_programs(model, schedule)
    assert report is not None
    assert (report["count"], report["chosen"]) == (8, 2)
    layer = [op for op in experts_of(schedule) if op.opcode is Opcode.EXPERTS_EACH][:1]
    layer += [op for op in experts_of(schedule) if op.opcode is Opcode.EXPERTS_SUM][:1]
    for number, way in enumerate(("chosen", "all")):
        took = sum(model.costs.cycles(programs(op)[number]) for op in layer)
        assert report["cycles_per_layer"]["1"][way] == took
    (line,) = expert_lines(report)
    both = report["cycles_per_layer"]["16"]
    assert line.startswith("experts: 2 of 8 a row; cycles a layer by reading the chosen ones'")
    assert f"16 rows {both['chosen']:,} | {both['all']:,}" in line


def test_a_model_without_experts_has_no_programs() -> None:
    _, model = compiled("gqa", "1x1")
    assert expert_programs(model, model.steps[STEP]) is None


@pytest.mark.parametrize("kernels", [None, "numpy"])
def test_both_programs_have_the_same_bits(kernels: str | None) -> None:
    """Every expert's product, those not chosen weighted with zero, gives the chosen ones' sum."""
    rng, k = np.random.default_rng(7), load(kernels)
    scores = rng.standard_normal((9, 6)).astype(np.float32)
    made = (rng.standard_normal((9, 6, 37)) * 100).astype(np.float32)
    made[:, :, 5] = -0.0
    for chosen, after in itertools.product((1, 2, 4, 6), (False, True)):
        e, g = np.empty((9, chosen), np.int32), np.empty((9, chosen), np.float32)
        k.route(scores, e, g, after)
        some, every = (np.empty((9, 37), np.float16) for _ in range(2))
        of_chosen = np.take_along_axis(made, e[:, :, None].astype(np.int64), axis=1)
        weights = np.zeros((9, 6), np.float32)
        np.put_along_axis(weights, e.astype(np.int64), g, axis=1)
        k.weighted_sum(np.ascontiguousarray(of_chosen), g, some)
        k.weighted_sum(made, weights, every)
        assert some.tobytes() == every.tobytes()


# -- routes


@pytest.mark.parametrize("name", ["mixtral_odd", "gpt_oss_odd"])
def test_equal_scores_go_to_the_lowest_numbers(name: str, tmp_path: Path) -> None:
    """Of three experts, the last two have the same scores."""
    shutil.copytree(GOLDENS / name, tmp_path / name)
    path = tmp_path / name / "model.safetensors"
    tensors = load_file(path)
    for key, tensor in tensors.items():
        if ".mlp.gate." in key or ".mlp.router." in key:
            tensor[1:] = 0
    save_file(tensors, path)
    model = resolve_model(str(tmp_path / name))
    options = Options(max_model_len=CONTEXT, prefill_chunk=16, buckets=(CONTEXT,))
    made = compile_model(model.config, machine("lesson"), parse_layout("1x1"), options)
    rack = LocalRack(made, model.weights_ref)
    rack.reset()
    tokens = np.load(GOLDENS / name / "golden.npz")["token_ids"].tolist()[:9]
    chosen = find(made.steps[STEP], 0, Opcode.ROUTE, "layers.1.mlp.route").op
    got, routes = [], set()
    for position, token in enumerate(tokens):
        got.append(rack.run_step(STEP, [position], [token]).logits)
        routes.add(tuple(rack.nodes[0].chip.sram.view(chosen.e, np.int32, (2,), (4,)).tolist()))
    rack.close()
    assert routes <= {(0, 1), (1, 2)}  # never 2 without 1
    assert (1, 2) in routes
    wanted = IntLlama(json.loads((GOLDENS / name / "config.json").read_text()), tensors)
    assert np.stack(got).tobytes() == wanted.logits(tokens).tobytes()


# -- time does not depend on routes


def test_cycles_are_equal_over_1000_tokens_of_different_routes() -> None:
    model, made = compiled("mixtral_odd", "1x1")
    rack = LocalRack(made, model.weights_ref)
    rack.reset()
    rng = np.random.default_rng(3)
    chosen = find(made.steps[STEP], 0, Opcode.ROUTE, "layers.1.mlp.route").op
    cycles, routes = [], set()
    for token in rng.integers(0, made.config.vocab_size, 1000).tolist():
        cycles.append(rack.run_step(STEP, [len(cycles) % CONTEXT], [token], STEP).cycles)
        numbers = rack.nodes[0].chip.sram.view(chosen.e, np.int32, (2,), (4,))
        routes.add(tuple(numbers.tolist()))
    rack.close()
    assert len(set(cycles[1:])) == 1  # the first has the request's start
    assert routes == {(0, 1), (0, 2), (1, 2)}


# -- what the verifier refuses


def refused(
    step: str, opcode: Opcode, name: str, change: dict[str, Any], layout: str = "1x2"
) -> str:  # fmt: skip
    """The error for a chip 1 whose operation of that name is changed."""
    _, model = compiled(layout=layout)
    schedule = model.steps[step]
    old = find(schedule, 1, opcode, name)
    new: Scheduled = replace(old, op=replace(old.op, **change))
    with pytest.raises(ScheduleError) as caught:
        check(model, edit(schedule, 1, old, new))
    return str(caught.value)


@pytest.mark.parametrize(
    ("opcode", "name", "change", "message"),
    [
        (Opcode.ROUTE, "1.mlp.route", {"chosen": 3}, "chosen 2, as mixtral has it, got 3"),
        (Opcode.ROUTE, "1.mlp.route", {"experts": 7}, "experts 8, as mixtral has it, got 7"),
        (Opcode.ROUTE, "1.mlp.route", {"after": True}, "after False, as mixtral has it, got True"),
        (
            Opcode.EXPERTS_EACH, "1.mlp.gate_up_proj", {"experts": 9},
            "experts 8, as mixtral has it, got 9",
        ),
        (
            Opcode.EXPERTS_SUM, "1.mlp.down_proj", {"chosen": 1},
            "chosen 2, as mixtral has it, got 1",
        ),
        (Opcode.SILU, "1.mlp.silu", {"each": None}, "each 2, as mixtral has it, got None"),
        (Opcode.GATHER, "1.mlp.down_proj", {"each": 4}, "each 2, as mixtral has it, got 4"),
        (
            Opcode.ATTEND, "1.self_attn.attend", {"window": 9},
            "window None, as mixtral has it, got 9",
        ),
        (Opcode.ATTEND, "1.self_attn.attend", {"cap": 2.0}, "cap None, as mixtral has it, got 2.0"),
    ],
)  # fmt: skip
def test_other_numbers_than_the_models(
    opcode: Opcode, name: str, change: dict[str, Any], message: str
) -> None:
    found = refused(STEP, opcode, name, change)
    assert found == f"chip 1, layers.{name} ({opcode}): wanted {message}"


def test_a_list_of_experts_elsewhere() -> None:
    _, model = compiled()
    op = find(model.steps[STEP], 1, Opcode.EXPERTS_EACH, "1.mlp.gate_up_proj").op
    second = op.w + expert_stride(op.k, op.n, op.dtype)  # the list begins with expert 1
    found = refused(STEP, Opcode.EXPERTS_EACH, "1.mlp.gate_up_proj", {"w": second})
    assert "chip 1, layers.1.mlp.gate_up_proj: operand w at" in found
    assert "is not its tensor layers.1.mlp.gate_up_proj at" in found


@pytest.mark.parametrize(
    ("opcode", "name", "operand", "message"),
    [
        (
            Opcode.EXPERTS_EACH, "1.mlp.gate_up_proj", "e",
            "layers.1.mlp.gate_up_proj (experts_each) reads e at",
        ),
        (
            Opcode.EXPERTS_SUM, "1.mlp.down_proj", "g",
            "layers.1.mlp.down_proj (experts_sum) reads g at",
        ),
    ],
)  # fmt: skip
def test_routes_that_are_no_routes(opcode: Opcode, name: str, operand: str, message: str) -> None:
    """The numbers of experts for their weights, and the reverse."""
    _, model = compiled()
    route = find(model.steps[STEP], 1, Opcode.ROUTE, "1.mlp.route").op
    other = route.g if operand == "e" else route.e
    found = refused(STEP, opcode, name, {operand: other})
    assert message in found
    assert "was last written by layers.1.mlp.route (route)" in found


def test_another_program_than_its_cycles() -> None:
    found = refused(
        STEP, Opcode.EXPERTS_SUM, "1.mlp.down_proj", {"every": True}
    )  # fmt: skip
    assert "layers.1.mlp.down_proj: experts_sum takes" in found
