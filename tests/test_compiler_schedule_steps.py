"""A step's operations follow from the layer's: each is listed, or done by the product beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedules import machine

from chip.ops.product import AddTo, Gated, GatherFirst, Matmul, NormFirst, Plain
from compiler.ir import StepKind
from compiler.model.operation import GraphOp
from compiler.model.presets import PRESETS
from compiler.pipeline import Options, lay_out
from compiler.place.layout import parse_layout
from compiler.schedule.movement import Transfer
from compiler.schedule.steps import Planned, StepPlanner

DECODE = StepKind(rows=1, bucket=32, decode=True)
PREFILL = StepKind(rows=8, bucket=32, decode=False)
OPTIONS = Options(max_model_len=32, prefill_chunk=8)
ALONE = [
    ("matmul", "self_attn.qkv_proj"), ("rope", "self_attn.rope"), ("attend", "self_attn.attend"),
    ("matmul", "self_attn.o_proj"), ("matmul", "mlp.gate_up_proj"), ("matmul", "mlp.down_proj"),
]  # fmt: skip
EACH = [
    ("norm", "input_layernorm"), ("matmul", "self_attn.qkv_proj"), ("rope", "self_attn.rope"),
    ("attend", "self_attn.attend"), ("gather", "self_attn.o_proj"), ("matmul", "self_attn.o_proj"),
    ("add", "self_attn.add"), ("norm", "post_attention_layernorm"), ("matmul", "mlp.gate_up_proj"),
    ("silu", "mlp.silu"), ("gather", "mlp.down_proj"), ("matmul", "mlp.down_proj"),
    ("add", "mlp.add"),
]  # fmt: skip


def planner(layout: str, kind: StepKind, options: Options = OPTIONS) -> StepPlanner:
    ground = lay_out(PRESETS["tiny"], machine("lesson"), parse_layout(layout), options)
    return ground.planner(kind)


def with_layer(of: StepPlanner, place: int, *ops: GraphOp) -> StepPlanner:
    """Put operations in the place of one in layer 0."""
    graph = of.partition.graph
    first = (*graph.layers[0][:place], *ops, *graph.layers[0][place + 1 :])
    of.partition = replace(of.partition, graph=replace(graph, layers=(first, *graph.layers[1:])))
    return of


def listed(of: StepPlanner, chip: int = 0, layer: int = 0) -> list[tuple[str, str]]:
    prefix = f"layers.{layer}."
    return [
        (str(item.op.opcode), item.name.removeprefix(prefix))
        for item in of.plan()
        if isinstance(item, Planned) and item.chip == chip and item.name.startswith(prefix)
    ]


def products(of: StepPlanner, chip: int = 0) -> list[Matmul]:
    items = [item for item in of.plan() if isinstance(item, Planned) and item.chip == chip]
    return [item.op for item in items if isinstance(item.op, Matmul)]


@pytest.mark.parametrize("kind", [DECODE, PREFILL])
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_every_operation_is_done_once(kind: StepKind, dtype: str) -> None:
    options = replace(OPTIONS, dtype=dtype)
    joined = kind is DECODE and dtype == "int8"
    assert listed(planner("1x1", kind, options)) == (ALONE if joined else EACH)


def test_a_sum_of_what_is_exchanged_is_no_part_of_the_product() -> None:
    assert [name for name in listed(planner("1x2", DECODE)) if name[0] == "add"] == [
        ("add", "self_attn.add"), ("add", "mlp.add"),
    ]  # fmt: skip


def test_what_products_take_and_make() -> None:
    qkv, o_proj, gate_up, down = products(planner("1x1", DECODE))[:4]
    parts = [(type(op.source), type(op.result)) for op in (qkv, o_proj, gate_up, down)]
    assert parts == [
        (NormFirst, Plain), (GatherFirst, AddTo), (NormFirst, Gated), (GatherFirst, AddTo)
    ]  # fmt: skip
    assert gate_up.out == "f16"
    assert qkv.out == "f32"


def test_a_neighbour_that_is_not_joined_is_an_operation_of_its_own() -> None:
    alone = planner("1x1", DECODE)
    layer = alone.partition.graph.layers[0]
    add, norm, gate = layer[6], layer[7], layer[9]
    again = with_layer(planner("1x1", DECODE), 6, add, add)
    assert listed(again)[4] == ("add", "self_attn.add")  # the first is a part of o_proj
    twice = with_layer(planner("1x1", DECODE), 7, norm, norm)
    assert listed(twice)[4] == ("norm", "post_attention_layernorm")
    other = with_layer(planner("1x1", DECODE), 9, replace(gate, inputs=("qkv",)))
    assert ("silu", "mlp.silu") in listed(other)


def test_the_residual_goes_ahead_of_the_last_sum() -> None:
    items = planner("2x2", DECODE).plan()
    names = [item.name for item in items if isinstance(item, Transfer)]
    last = f"layers.{planner('2x2', DECODE).partition.groups[0].layers[-1]}."
    handed = [name.removeprefix(last) for name in names if name.startswith((last, "stage1."))]
    assert handed.index("self_attn.add") < handed.index("mlp.silu") < handed.index("mlp.down_proj")
    adds = [(item.chip, item.name) for item in items if isinstance(item, Planned)]
    assert {chip for chip, name in adds if name == f"{last}mlp.add"} == {2, 3}
    prefill = [item for item in planner("2x2", PREFILL).plan() if isinstance(item, Planned)]
    assert {item.chip for item in prefill if item.name == f"{last}mlp.add"} == {0, 1}
