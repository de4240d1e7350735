"""What several sequences in flight get: rates a user and in all, from intervals between steps.

A pipeline takes a step every interval. With n steps' worth of sequences it is full when n intervals
are as long as a step; until then each sequence's token takes what it takes alone. Beyond that all
share alike. A step of b rows serves b sequences: what is best for so many sequences is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from compiler.model.presets import PRESETS
from compiler.pipeline import CompiledModel, Options, compile_model, lay_out, most_sequences, roomy
from compiler.place.layout import parse_layout
from rack.machines.hardware import Hardware
from rack.reports.plots import Panel, Series

COUNTS = (1, 2, 4, 8, 16, 32, 64)  # of sequences, in the table
CONTEXT = 512
BATCH = 4  # most rows of a step, in the table
CASES = (("llama-8b", "8x4+4"), ("llama-8b", "8x8+8"), ("llama-70b", "70x8+16"))
MACHINES = ("lesson", "groqrack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Decode steps of so many rows: cycles of one, and from one to the next."""

    rows: int
    cycles: int
    interval_cycles: int

    @property
    def full_at(self) -> int:
        """Sequences at which the pipeline is full."""
        return self.rows * max(1, self.cycles // self.interval_cycles)

    def token_cycles(self, sequences: int) -> int:
        """Return the cycles from a token to the next one of a user, with so many at once."""
        steps = -(-sequences // self.rows)  # that take turns
        return max(self.cycles, steps * self.interval_cycles)


def paces(compiled: CompiledModel, context: int) -> tuple[Pace, ...]:
    """Return the paces of decode steps at a context, by rising rows."""
    steps = [compiled.step(rows, context, decode=True) for rows in compiled.decode_sizes]
    return tuple(
        Pace(
            rows=step.kind.rows, cycles=step.cycles,
            interval_cycles=compiled.interval(step.name, step.name),
        )
        for step in steps
    )  # fmt: skip


def token_cycles(found: Sequence[Pace], sequences: int) -> int:
    """Return the fewest cycles a token of a user, with so many at once."""
    return min(pace.token_cycles(sequences) for pace in found)


def sequences_report(compiled: CompiledModel, context: int) -> dict[str, Any]:
    """Return what `plan` says of sequences, as plain data. Rates are emulated tokens a second.

    `alone`: of one sequence. `all`: with one in every slot. `full`: of a pipeline that is full of
    the largest batches, whether or not there are so many slots.
    """
    found, clock = paces(compiled, context), compiled.chip.clock_hz
    each = clock / token_cycles(found, compiled.sequences)
    largest = found[-1]
    return {
        "count": compiled.sequences,
        "batch": compiled.batch,
        "interval_cycles": largest.interval_cycles,
        "full_at": largest.full_at,
        "tokens_per_s_user": {"alone": clock / found[0].cycles, "all": each},
        "tokens_per_s": {
            "alone": clock / found[0].cycles, "all": compiled.sequences * each,
            "full": largest.rows * clock / largest.interval_cycles,
        },
        "steps": [{**asdict(pace), "full_at": pace.full_at} for pace in found],
    }  # fmt: skip


def sequences_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the same as lines of text."""
    for step in report["steps"]:
        name = f"steps of {step['rows']} rows" if step["rows"] > 1 else "steps of a row"
        yield (
            f"{name}: {step['cycles']:,} cycles, one every {step['interval_cycles']:,}; the "
            f"pipeline is full with {step['full_at']} sequences"
        )
    user, every = report["tokens_per_s_user"], report["tokens_per_s"]
    yield (
        "intervals: a chip begins a step when it has ended the one before; no buffers are doubled"
    )
    yield (
        f"{report['count']} sequences, batches of up to {report['batch']}: {user['alone']:,.1f} "
        f"tokens/s a user alone, {user['all']:,.1f} with all, {every['all']:,.1f} in all; a full "
        f"pipeline has {every['full']:,.1f}"
    )


# -- the table of docs/performance.md


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """A model on a machine: tokens a second of a user, by the number of sequences and rows."""

    model: str
    hardware: str
    chips: int
    layout: str
    context: int
    most: int  # sequences of the context that SRAM has room for
    clock_hz: int
    paces: tuple[Pace, ...]

    def user(self, sequences: int) -> float:
        """Return a user's tokens a second with so many at once."""
        return self.clock_hz / token_cycles(self.paces, sequences)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        rates = {str(n): self.user(n) for n in COUNTS if n <= self.most}
        return {**asdict(self), "tokens_per_s_user": rates}


def rates(model: str, layout: str, hardware: Hardware, batch: int) -> Rates:
    """Compile the decode steps of a model with as many slots as fit, up to `batch` rows."""
    config, wanted = PRESETS[model], parse_layout(layout)
    context = min(CONTEXT, config.max_position_embeddings)
    asked = Options(max_model_len=context)
    ground = lay_out(config, hardware, wanted, asked)
    chip = roomy(config, hardware)
    most = most_sequences(ground.partition, ground.network, chip, asked, context)
    options = replace(asked, sequences=most, batch=min(batch, most))
    compiled = compile_model(
        config, hardware, wanted, options, kinds="decode", contexts=(context,)
    )  # fmt: skip
    return Rates(
        model=model, hardware=hardware.name, chips=wanted.chips, layout=layout, context=context,
        most=most, clock_hz=compiled.chip.clock_hz, paces=paces(compiled, context),
    )  # fmt: skip


def panel(rows: Sequence[Rates]) -> Panel:
    """Return a user's rate by the number of sequences, a line for each model and machine."""
    lines = []
    for row in rows:
        counts = [n for n in range(1, COUNTS[-1] + 1) if n <= row.most]
        lines.append(
            Series(
                label=f"{row.model} {row.layout}, {row.hardware}", x=tuple(counts),
                y=tuple(row.user(n) for n in counts),
            )
        )  # fmt: skip
    return Panel(
        title=f"int8, context {CONTEXT}, steps of up to {BATCH} rows",
        x_label="sequences in flight", y_label="tokens/s of a user", series=tuple(lines),
        log_x=True, log_y=True,
    )  # fmt: skip


def markdown(rows: Sequence[Rates]) -> str:
    """Write lines for steps of one row and of the most; what SRAM has no room for is a dash."""
    head = [
        "model, chips", "machine", "rows", "cycles", "interval", "full at", "slots",
        *(f"S = {n}" for n in COUNTS), "in all, full",
    ]  # fmt: skip
    return "\n".join([
        _line(head), _line(["---"] * len(head)),
        *(
            _line(_cells(row, pace))
            for row in rows for pace in dict.fromkeys((row.paces[0], row.paces[-1]))
        ),
    ])  # fmt: skip


def _cells(row: Rates, pace: Pace) -> list[str]:
    def rate(n: int) -> str:
        room = pace.rows <= n <= row.most
        return f"{row.clock_hz / pace.token_cycles(n):,.0f}" if room else "-"

    return [
        f"{row.model}, {row.chips} (`{row.layout}`)", row.hardware, str(pace.rows),
        f"{pace.cycles:,}", f"{pace.interval_cycles:,}", str(pace.full_at), f"{row.most:,}",
        *(rate(n) for n in COUNTS), f"{pace.rows * row.clock_hz / pace.interval_cycles:,.0f}",
    ]  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
