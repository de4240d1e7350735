"""Functions of one value as ALU operations: activations of gates, GELU, caps.

Numerics: chip/kernels/vmath.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from chip.isa.instructions import AluOp
from chip.kernels.vmath import GELU_MAX, GELU_POLY, GELU_TANH_POLY
from chip.ops.opcodes import Activation, Function
from compiler.codegen.core.builder import Block, Load, Node, NodeSource
from compiler.codegen.core.parts import f32

AGAIN = 6  # cycles that a value is begun before it is needed, where it is read a second time
SHORT = 2  # coefficients of a polynomial beside which a value is kept
LIMIT = 7.0  # of a clamped gate's columns
STEEP = 1.702  # of its sigmoid
CLAMPED = 12  # cycles that clamped up columns take

Chain = Sequence[int | None]
"""ALUs that make an activation, in order; the last holds the result. None: any that is free."""
ANY: Chain = (None,) * 7


def sigmoid(b: Block, x: NodeSource, on: Sequence[int | None] = (None,) * 5) -> Node:
    """1 / (1 + e^-x): rsqrt twice. `on`: the ALUs, in order."""
    minus, *others = on
    return _logistic(b, b.alu(AluOp.NEG, x, on=minus), others)


def _logistic(b: Block, minus: Node, on: Chain) -> Node:
    """1 / (1 + e^minus)."""
    exp, plus, root, square = on
    e = b.alu(AluOp.EXP, minus, on=exp)
    r = b.alu(AluOp.RSQRT, b.alu(AluOp.ADD, f32(1.0), e, on=plus), on=root)
    return b.alu(AluOp.MUL, r, r, on=square)


def silu(b: Block, gate: Node, on: Chain) -> Node:
    """gate * sigmoid(gate)."""
    kept, minus, exp, plus, root, square, gated = on
    if b.turning:
        return b.meet(AluOp.MUL, gate, sigmoid(b, gate))
    value = gate if kept is None else b.alu(AluOp.COPY, gate, on=kept)
    return b.alu(AluOp.MUL, value, sigmoid(b, gate, (minus, exp, plus, root, square)), on=gated)


def clamped_silu(b: Block, gate: Node, on: Chain) -> Node:
    """h * sigmoid(1.702 h), h = min(gate, 7)."""
    kept, minus, exp, plus, root, square, gated = on
    low = b.alu(AluOp.MIN, gate, f32(LIMIT), on=exp)
    steep = b.alu(AluOp.MUL, low, f32(-STEEP), on=minus)  # the sign of an exact product
    value = low if kept is None else b.alu(AluOp.COPY, low, on=kept)
    share = _logistic(b, steep, (exp, plus, root, square))
    return b.meet(AluOp.MUL, value, share, on=gated)


def clamped_up(b: Block, up: NodeSource, lanes: int, after: int) -> Node:
    """max(min(up, 7), -7) + 1."""
    low = b.alu(AluOp.MIN, up, f32(LIMIT), lanes=lanes, after=after)
    high = b.alu(AluOp.MAX, low, f32(-LIMIT), lanes=lanes)
    return b.alu(AluOp.ADD, high, f32(1.0), lanes=lanes)


def geglu(b: Block, gate: Node, on: Chain) -> Node:
    """gelu_tanh(gate)."""
    kept, first = on[0], on[1]
    square = b.alu(AluOp.MUL, gate, gate, on=first)
    value = gate if kept is None else b.alu(AluOp.COPY, gate, on=kept)
    return _gelu(b, square, GELU_TANH_POLY, lambda total: value, on)


ACTIVATIONS: dict[Activation, Callable[[Block, Node, Chain], Node]] = {
    Activation.SILU: silu,
    Activation.GEGLU: geglu,
    Activation.CLAMPED_SILU: clamped_silu,
}
UPS: dict[Activation, Callable[[Block, NodeSource, int, int], Node]] = {
    Activation.CLAMPED_SILU: clamped_up
}
"""What is done to the up columns of those gates that do not take them as they are."""


def risen(
    b: Block, activation: Activation, up: NodeSource, lanes: int, after: int = 0
) -> NodeSource:  # fmt: skip
    """Return what an activation's gate is multiplied by, of its up columns."""
    return UPS[activation](b, up, lanes, after) if activation in UPS else up


GELU: dict[Function, tuple[np.float32, ...]] = {
    Function.GELU: GELU_POLY, Function.GELU_TANH: GELU_TANH_POLY
}  # fmt: skip


def gelu(
    b: Block, x: Load, lanes: int, coefficients: Sequence[np.float32], after: int
) -> Node:  # fmt: skip
    """x * (tanh(x * P(x^2)) / 2 + 1/2), as in chip/kernels/vmath.py.

    Where P is long x is read again when it is known: registers are few.
    """
    short = len(coefficients) <= SHORT
    value = b.alu(AluOp.COPY, x, lanes=lanes, after=after) if short else x
    square = b.alu(AluOp.MUL, value, value, lanes=lanes, after=after)

    def again(total: Node) -> Node:
        if isinstance(value, Node):
            return value
        return b.alu(AluOp.COPY, x, lanes=lanes, after=total.done - AGAIN)

    return _gelu(b, square, coefficients, again, ANY)


def _gelu(
    b: Block, square: Node, coefficients: Sequence[np.float32], again: Callable[[Node], Node],
    on: Chain,
) -> Node:  # fmt: skip
    """Return the value's GELU by its square; `again` gives the value when P is known."""
    _, small, large, other, bent, _, last = on
    z = b.alu(AluOp.MIN, square, f32(float(GELU_MAX)), on=large)
    total: NodeSource
    total, *others = (f32(float(c)) for c in coefficients)
    for c in others:
        total = b.alu(AluOp.ADD, b.alu(AluOp.MUL, total, z, on=other), c, on=small)
    assert isinstance(total, Node)
    value = again(total)
    tanh = b.alu(AluOp.TANH, b.alu(AluOp.MUL, value, total, on=other), on=bent)
    share = b.alu(AluOp.MUL, tanh, f32(0.5), on=small)
    return b.meet(AluOp.MUL, value, b.alu(AluOp.ADD, share, f32(0.5), on=other), on=last)


def capped(b: Block, x: Node, cap: float) -> Node:
    """cap * tanh(x / cap)."""
    bent = b.alu(AluOp.TANH, b.alu(AluOp.MUL, x, f32(1.0 / cap)))
    return b.alu(AluOp.MUL, bent, f32(cap), lanes=x.lanes)
