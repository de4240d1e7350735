"""Operations from their plain form, for tests that spoil or vary one operand at a time.

What a shape says nothing of gets a value that makes it whole: address 0, scales for int8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

from chip.isa.issue import Issue
from chip.ops.attention import Attend, Rope
from chip.ops.cost import Cost
from chip.ops.experts import ExpertsEach, ExpertsSum, Route
from chip.ops.kv import KvLayout
from chip.ops.moves import Receive, Send
from chip.ops.opcodes import Activation, Function, Opcode, Use, plain
from chip.ops.product import (
    Activations,
    AddTo,
    Capped,
    Gated,
    GatherFirst,
    LinkRoom,
    Matmul,
    NormFirst,
    Plain,
)
from chip.ops.program import Scheduled
from chip.ops.vector import Add, Apply, Gate, Gather, LayerNorm, Norm, TopK
from chip.spec import ChipSpec
from compiler.codegen import table
from compiler.codegen.core.template import Template
from compiler.codegen.cost import cost_model

OPERATIONS = (
    Norm, LayerNorm, Gather, Matmul, Rope, Attend, Add, TopK, Send, Receive, Route, ExpertsEach,
    ExpertsSum,
)  # fmt: skip
GATES = {Opcode(activation.value): Gate for activation in Activation}
APPLIED = {Opcode(function.value): Apply for function in Function}
TYPES: dict[Opcode, Any] = {of.opcode: of for of in OPERATIONS} | GATES | APPLIED
MAY_LACK = (  # operands that no dtype decides
    *("first_column", "b", "post", "gq", "gk", "sinks"),
    *("slots", "kv_step", "kvs_step", "row"),
)
SOURCES = {None: Activations, "norm": NormFirst, "gather": GatherFirst}
RESULTS = {None: Plain, "add": AddTo, "cap": Capped} | dict.fromkeys(Activation, Gated)
WIDTHS = {"rows": 1, "hidden": 64, "k": 64, "n": 64, "eps": 1e-5, "out": "f32", "dtype": "int8",
          "experts": 4, "chosen": 2, "after": False, "apart": 640}  # fmt: skip


def args(operation: Scheduled) -> dict[str, Any]:
    """Return an operation's values by name."""
    return plain(operation.op)


def operation_of(opcode: Opcode | str, values: Mapping[str, Any]) -> Any:
    """Return the operation that has these values. Raises ValueError for an unknown opcode."""
    of = TYPES[Opcode(opcode)]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    word = str(opcode) if of is Gate else values.get("epilogue")
    if word in GATES:
        values = values | {"activation": Activation(word)}
    if of is Apply:
        values = values | {"function": Function(opcode)}
    if of is not Matmul:
        return _made(of, values)
    parts = {
        "source": _made(SOURCES[values.get("prologue")], values),
        "result": _made(RESULTS[values.get("epilogue")], values),
        "links": _made(LinkRoom, values),
    }
    return _made(of, values | parts)


def _made(of: type[Any], values: Mapping[str, Any]) -> Any:
    int8, given = values.get("dtype") == "int8" or "prologue" in values, {}
    for one in fields(of):
        if one.name in values:
            given[one.name] = values[one.name]
        elif "bound" in one.metadata and one.name not in MAY_LACK:
            if one.default is MISSING or int8 or one.name in ("rope", "q"):
                given[one.name] = 0
        elif one.default is MISSING and one.name in WIDTHS:
            given[one.name] = WIDTHS[one.name]
        elif one.name == "first_column" and one.default is MISSING:
            given[one.name] = 0
    return of(**given)


def scheduled(
    opcode: Opcode | str, name: str, args: Mapping[str, Any], start: int, end: int, nop: int = 0
) -> Scheduled:  # fmt: skip
    """Return a scheduled operation."""
    op = operation_of(opcode, args)
    return Scheduled(op=op, name=name, start=start, end=end, nop=nop)


def from_list(item: list[Any]) -> Scheduled:
    """Return the operation of `Scheduled.to_list`."""
    return scheduled(*item)


def with_args(operation: Scheduled, **changed: Any) -> Scheduled:
    """The same operation with other operands."""
    return replaced(operation, {**args(operation), **changed})


def replaced(operation: Scheduled, values: Mapping[str, Any]) -> Scheduled:
    """The same operation with just these values."""
    return replace(operation, op=operation_of(operation.opcode, values))


def operands(opcode: Opcode, values: Mapping[str, Any]) -> tuple[list[Use], list[Use]]:
    """(operand, region) of what an operation reads, and of what it writes."""
    op = operation_of(opcode, values)
    return op.reads(), op.writes()


def kv_layout(values: Mapping[str, Any]) -> KvLayout:
    """The cache's layout for a ROPE or ATTEND."""
    names = ("kv_heads", "head_dim", "dtype")
    slots = values.get("ring") or values["context"]
    return KvLayout(context=slots, **{name: values[name] for name in names})


def template(opcode: Opcode, values: Mapping[str, Any], spec: ChipSpec) -> Template:
    """An operation's template."""
    return table.template(operation_of(opcode, values), spec)


def cost(opcode: Opcode, values: Mapping[str, Any], spec: ChipSpec) -> Cost:
    """An operation's cost."""
    return cost_model(spec).cost(operation_of(opcode, values))


def cycles(opcode: Opcode, values: Mapping[str, Any], spec: ChipSpec) -> int:
    """Cycles from issue to the last result."""
    return cost(opcode, values, spec).cycles


def result_stream_cycles(opcode: Opcode, values: Mapping[str, Any], spec: ChipSpec) -> int:
    """Cycles from the first to the last vector of the result."""
    return cost_model(spec).stream_cycles(operation_of(opcode, values))


def needed(
    opcode: Opcode, operand: str, values: Mapping[str, Any], spec: ChipSpec
) -> tuple[int, int]:  # fmt: skip
    """Cycles after issue at which an operand's first and last vectors are needed."""
    return cost_model(spec).needed(operation_of(opcode, values), operand)


def named(issues: Iterable[Issue], name: str) -> list[Issue]:
    """The issues of one operation."""
    return [issue for issue in issues if issue.name == name]
