"""What each model takes on a machine, and how fast it then is: the table of models in README.

Layouts are those that `--layout auto` chooses: the fewest racks, then the fewest cycles a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compiler.model.config import ModelConfig
from compiler.model.presets import PRESETS
from compiler.pipeline import DTYPES, Options, compile_model
from compiler.place.auto import choose_layout
from compiler.place.layout import Layout
from rack.machines.hardware import Hardware

CONTEXT = 512  # of the tokens per second
MODELS = tuple(
    name
    for name, config in PRESETS.items()
    if config.encoder is None and not name.startswith("tiny")
)
MACHINES = ("lesson", "groqrack")
QUANTISED = tuple(dtype for dtype in ("int8", "int4") if dtype in DTYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A model on a machine. `context`: the largest that fits beside a prefill chunk."""

    model: str
    hardware: str
    dtype: str
    layout: str
    chips: int
    racks: int
    tokens_per_second: float
    context: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def fit(config: ModelConfig, hardware: Hardware, dtype: str, layout: Layout | None = None) -> Fit:
    """Lay a model out, on `layout` or the best, and schedule a token of it."""
    options = Options(dtype=dtype)
    layout = layout or choose_layout(config, hardware, options)
    compiled = compile_model(
        config, hardware, layout, options, kinds="decode", contexts=(CONTEXT,)
    )  # fmt: skip
    cycles = compiled.step(1, CONTEXT, decode=True).cycles
    return Fit(
        model=config.name, hardware=hardware.name, dtype=dtype, layout=str(layout),
        chips=layout.chips, racks=hardware.racks(layout.chips),
        tokens_per_second=compiled.chip.clock_hz / cycles, context=compiled.max_model_len,
    )  # fmt: skip


def fits(models: Sequence[str], machines: Sequence[Hardware]) -> Iterator[Fit]:
    """Yield each model on each machine, in each type of weights."""
    for model in models:
        for hardware in machines:
            for dtype in QUANTISED:
                yield fit(PRESETS[model], hardware, dtype)


def markdown(rows: Sequence[Fit]) -> str:
    """Write a line for each model and machine; its types stand side by side."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    cells = ("layout", "chips (racks)", "tokens/s", "context")
    head = ["model", "machine", *(f"{dtype}: {cell}" for dtype in dtypes for cell in cells)]
    lines = [_line(head), _line(["---"] * len(head))]
    for model, machine in dict.fromkeys((row.model, row.hardware) for row in rows):
        found = [row for row in rows if (row.model, row.hardware) == (model, machine)]
        lines.append(_line([f"`{model}`", machine, *(cell for row in found for cell in _of(row))]))
    return "\n".join(lines)


def _of(row: Fit) -> tuple[str, ...]:
    return (
        f"`{row.layout}`", f"{row.chips} ({row.racks})", f"{row.tokens_per_second:,.0f}",
        f"{row.context:,}",
    )  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
