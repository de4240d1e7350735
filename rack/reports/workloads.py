"""Who should use what: the course text's kinds of work, each with a verdict that is computed.

A kind of work has a batch, a speed that a user needs, and what it is judged by. Of the machines
that are fast enough the best is taken; where none is, the fastest. What a user needs is an
assumption, and is shown beside the verdict. Two kinds are no decoding: embedding takes prompts
alone, and training needs memory for more than weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compiler.model.config import ModelConfig
from rack.machines.gpu import GpuDtype
from rack.machines.hardware import Hardware
from rack.reports.comparison import Machine, Side
from rack.reports.costs import Prices, cost
from rack.reports.gpu_time import USABLE, terms, weight_bytes

LPU = "LPU"
TRAINED_BYTES = 16  # a parameter: fp16 weight and gradient; fp32 weight and Adam's two moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A kind of work that decodes. `needs`: tokens a second and user, with the reason."""

    name: str
    batch: int
    needs: float
    why: str
    by: str  # a key of Machine.row
    most: bool  # whether more of that is better


WORKS = (
    Work(
        name="single user", batch=1, needs=0.0, why="as fast as can be",
        by="tokens_per_s_user", most=True,
    ),
    Work(
        name="voice", batch=4, needs=200.0,
        why="assumption: a sentence of 20 tokens within 100 ms", by="usd_per_million_tokens",
        most=False,
    ),
    Work(
        name="API, 32 and more", batch=32, needs=20.0,
        why="assumption: faster than people read", by="usd_per_million_tokens", most=False,
    ),
    Work(
        name="batch jobs", batch=256, needs=0.0, why="nobody waits", by="usd_per_million_tokens",
        most=False,
    ),
)  # fmt: skip
UNITS = {
    "tokens_per_s_user": "tokens/s a user", "usd_per_million_tokens": "USD a million tokens",
}  # fmt: skip


def verdicts(
    config: ModelConfig,
    hardware: Hardware,
    rack: Machine,
    sides: Sequence[Side],
    prompt_tokens_per_s: float,
    prices: Prices,
) -> list[dict[str, Any]]:
    """Return a row for each kind of work: machines' figures, the best, and by how much."""
    machines = {LPU: rack, **{side.gpu.name: side.machine for side in sides}}
    rows = [_decoding(work, machines, prices) for work in WORKS]
    embedding = _embedding(rack, sides, prompt_tokens_per_s, prices)
    training = _training(config, hardware, sides)
    return [*rows[:3], embedding, rows[3], training]


def _decoding(work: Work, machines: dict[str, Machine], prices: Prices) -> dict[str, Any]:
    rows = {name: machine.row(work.batch, prices) for name, machine in machines.items()}
    enough = {name: row for name, row in rows.items() if row["tokens_per_s_user"] >= work.needs}
    by, most, judged = work.by, work.most, enough
    if not enough:
        by, most, judged = "tokens_per_s_user", True, rows
    slow = {
        name: f"{row['tokens_per_s_user']:,.0f} tokens/s a user"
        for name, row in rows.items()
        if name not in enough
    }
    return {
        "workload": work.name,
        "batch": work.batch,
        "needs_tokens_per_s_user": work.needs,
        "why": work.why,
        "judged_by": UNITS[by],
        "figures": {name: row[by] for name, row in rows.items()},
        "cannot": slow if enough else {},
        **_best({name: row[by] for name, row in judged.items()}, most=most),
    }


def _embedding(
    rack: Machine, sides: Sequence[Side], prompt_tokens_per_s: float, prices: Prices
) -> dict[str, Any]:
    """Judge by dollars: a token of a prompt costs no step of its own on either side."""
    found = {LPU: cost(rack.economics, rack.chips, prompt_tokens_per_s, prices).usd[1]}
    for side in sides:
        reached = side.gpu.efficiency
        rate = reached.compute / terms(side.gpu, side.prompts()).prompts
        found[side.gpu.name] = cost(side.gpu.economics, side.load.gpus, rate, prices).usd[1]
    return {
        "workload": "embedding",
        "why": "prompts alone, as many at once as there are; nobody waits",
        "judged_by": "USD a million tokens of prompts",
        "figures": found,
        "cannot": {},
        **_best(found, most=False),
    }


def _training(
    config: ModelConfig, hardware: Hardware, sides: Sequence[Side]
) -> dict[str, Any]:  # fmt: skip
    """Judge by the price of chips whose memory holds what training keeps for each parameter."""
    kept = weight_bytes(config, GpuDtype.FP16) / 2 * TRAINED_BYTES
    chips = {LPU: math.ceil(kept / hardware.chip.sram_bytes)}
    price = {LPU: chips[LPU] * hardware.economics.price.usual}
    for side in sides:
        number = math.ceil(kept / (side.gpu.memory_bytes * USABLE))
        chips[side.gpu.name] = number
        price[side.gpu.name] = number * side.gpu.economics.price.usual
    return {
        "workload": "training",
        "why": f"{TRAINED_BYTES} bytes for each parameter",
        "judged_by": "USD for chips that hold it",
        "figures": {name: float(value) for name, value in price.items()},
        "chips": chips,
        "cannot": {LPU: "its schedules have no backward pass"},
        **_best({name: float(value) for name, value in price.items() if name != LPU}, most=False),
    }


def _best(figures: dict[str, float], *, most: bool) -> dict[str, Any]:
    """Return the best machine, and how many times better it is than the next."""
    order = sorted(figures, key=lambda name: -figures[name] if most else figures[name])
    out: dict[str, Any] = {"verdict": order[0], "next": None, "times": None}
    if len(order) > 1:
        pair = figures[order[0]], figures[order[1]]
        out |= {"next": order[1], "times": max(pair) / min(pair)}
    return out
