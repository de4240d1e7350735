"""Which settings give a user the published time of a token: a search, in which no constant changes.

Three ways lead there from a rack that is faster: a layout or a type that is slower for a lone
sequence; more sequences than fill the pipeline, which share it; and a slower clock. For each
published time one of each way is kept: the nearest lone sequence, the fewest chips on which
sequences in flight come within one per cent, and the clock. Layouts are pipelines of one, two or
four layers a stage and more, on groups of chips by powers of two; their decode steps are scheduled,
not verified (as `--layout auto` ranks them). Tokens in context: CONTEXT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compiler.errors import CompilerError
from compiler.model.config import ModelConfig
from compiler.model.presets import PRESETS
from compiler.pipeline import DTYPES, CompiledModel, Options, compile_model
from compiler.place.layout import Layout
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware
from rack.reports.lpu_batches import slots_that_fit
from rack.reports.sequences import Pace, paces

CONTEXT = 512
GROUPS = (1, 2, 4, 8, 16)
LAYERS = (1, 2, 4, 8, 16)  # of a stage
HEADS = (1, 2, 4, 8, 16, 32)
NEAR = 0.01  # of a published time: sequences in flight land there
TRIES = 3  # clocks; each is nearer than the last
TARGETS = {
    "llama-8b": ((1e6 / 750, "750 tokens/s, 2025"), (1e6 / 1200, "1,200 tokens/s, 2024")),
    "llama-70b": ((4000.0, "250 tokens/s, 3.1 in 2024"), (1e6 / 275, "275 tokens/s, 3.3")),
    "gemma2-9b": ((1e6 / 550, "550 tokens/s"),),
}
"""Model -> published times of a token in microseconds, from API responses (docs/hardware.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A layout and a type, and what they give."""

    model: str
    dtype: str
    layout: Layout
    pace: Pace  # of a row
    clock_hz: int

    def token_us(self, sequences: int) -> float:
        """Return the time between a user's tokens, with so many sequences in flight."""
        return self.pace.token_cycles(sequences) * 1e6 / self.clock_hz

    def sharing(self, wanted_us: float) -> int | None:
        """Return the sequences that fill the pipeline and have that time, within NEAR, if any."""
        number = round(wanted_us * self.clock_hz / 1e6 / self.pace.interval_cycles)
        if number * self.pace.interval_cycles < self.pace.cycles:
            return None  # a lone sequence takes longer
        return number if abs(self.token_us(number) / wanted_us - 1) <= NEAR else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """The settings that are kept for a published time, on one way."""

    model: str
    published_us: float
    published: str
    way: str
    dtype: str
    layout: str
    chips: int
    sequences: int
    clock_mhz: float
    token_us: float

    @property
    def error_percent(self) -> float:
        """Return the signed error of ours."""
        return (self.token_us / self.published_us - 1) * 100

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "error_percent": self.error_percent}


def layouts(config: ModelConfig) -> Iterator[Layout]:
    """Yield the pipelines that are tried; heads are as small as their groups, or larger."""
    for group in GROUPS:
        for layers in LAYERS:
            if layers <= config.num_layers:
                yield Layout(stages=-(-config.num_layers // layers), group=group)


def tried(
    config: ModelConfig, hardware: Hardware, progress: Callable[[str, int, int], None]
) -> list[Tried]:
    """Schedule a decode step on every layout that fits, in every type."""
    wanted = [(dtype, layout) for dtype in DTYPES for layout in layouts(config)]
    out = []
    for done, (dtype, layout) in enumerate(wanted):
        progress(f"layouts of {config.name}", done, len(wanted))
        for head in (head for head in HEADS if head >= min(layout.group, HEADS[-1])):
            whole = Layout(stages=layout.stages, group=layout.group, head=head)
            compiled = _estimate(config, hardware, dtype, whole)
            if compiled is not None:
                out.append(_tried(compiled, whole))
                break
    progress(f"layouts of {config.name}", len(wanted), len(wanted))
    return out


def _tried(compiled: CompiledModel, layout: Layout) -> Tried:
    return Tried(
        model=compiled.config.name, dtype=compiled.dtype, layout=layout,
        pace=paces(compiled, _context(compiled.config))[0], clock_hz=compiled.chip.clock_hz,
    )  # fmt: skip


def _estimate(
    config: ModelConfig, hardware: Hardware, dtype: str, layout: Layout
) -> CompiledModel | None:
    """Return the model with its decode step; None where it does not fit or cannot be cabled."""
    try:
        return compile_model(config, hardware, layout, _options(config, dtype), kinds="estimate")
    except CompilerError:
        return None


def _options(config: ModelConfig, dtype: str) -> Options:
    context = _context(config)
    return Options(dtype=dtype, max_model_len=context, buckets=(context,), prefill_chunk=4)


def _context(config: ModelConfig) -> int:
    return min(CONTEXT, config.max_position_embeddings)


def landings(
    found: Sequence[Tried], hardware: Hardware, published_us: float, published: str
) -> Iterator[Landing]:
    """Yield the nearest alone; in flight the fewest chips within NEAR; and the clock that lands."""

    def landing(way: str, one: Tried, sequences: int, token_us: float, clock: float) -> Landing:
        return Landing(
            model=one.model, published_us=published_us, published=published, way=way,
            dtype=one.dtype, layout=str(one.layout), chips=one.layout.chips, sequences=sequences,
            clock_mhz=clock / 1e6, token_us=token_us,
        )  # fmt: skip

    own = hardware.chip.clock_hz
    alone = min(found, key=lambda one: abs(one.token_us(1) - published_us))
    yield landing("alone", alone, 1, alone.token_us(1), own)
    near = [(one, number) for one in found if (number := one.sharing(published_us)) is not None]
    near.sort(key=lambda pair: (pair[0].layout.chips, pair[1], pair[0].dtype))
    for one, sequences in near:
        config = PRESETS[one.model]
        options, context = _options(config, one.dtype), _context(config)
        if slots_that_fit(config, hardware, one.layout, options, context) >= sequences:
            yield landing("in flight", one, sequences, one.token_us(sequences), own)
            break
    fastest = min((one for one in found if one.dtype == "int8"), key=lambda one: one.token_us(1))
    clock, token_us = slower_clock(fastest, hardware, published_us)
    yield landing("clock", fastest, 1, token_us, clock)


def slower_clock(one: Tried, hardware: Hardware, wanted_us: float) -> tuple[int, float]:
    """Return the clock at which a lone token takes that long, and how long it takes then.

    Cables and the host keep their times, so a token takes `fixed + cycles / clock` or nearly so,
    which two clocks tell: each further one is tried at what the two before it tell.
    """
    clock, token_us = hardware.chip.clock_hz, one.token_us(1)
    following = round(clock * token_us / wanted_us)
    for _ in range(TRIES):
        compiled = _estimate(
            PRESETS[one.model], at_clock(hardware, following), one.dtype, one.layout
        )
        assert compiled is not None, "it fitted at another clock"
        before, before_us, clock = clock, token_us, following
        token_us = _tried(compiled, one.layout).token_us(1)
        if clock == before or token_us == before_us:
            break
        cycles = (token_us - before_us) / (1 / clock - 1 / before)
        left_us = wanted_us - (token_us - cycles / clock)
        if left_us <= 0:
            break  # no clock does: what is fixed takes longer
        following = max(1, round(cycles / left_us))
    return clock, token_us


def at_clock(hardware: Hardware, clock_hz: int) -> Hardware:
    """Return a shipped machine with another clock, by a profile that inherits it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clock.toml"
        path.write_text(
            f'name = "{hardware.name}"\ninherits = "{hardware.name}"\n[chip]\n'
            f'clock_hz = {{ value = {clock_hz}, source = "assumption: searched for" }}\n'
        )
        return load_hardware(path)


def search(
    models: Sequence[str], hardware: Hardware, progress: Callable[[str, int, int], None]
) -> list[Landing]:
    """Return the nearest settings to every published time of the models."""
    out: list[Landing] = []
    for name in models:
        found = tried(PRESETS[name], hardware, progress)
        for published_us, published in TARGETS[name]:
            out += landings(found, hardware, published_us, published)
    return out


def markdown(found: Sequence[Landing]) -> str:
    """Write the table of docs/lesson.md."""
    lines = [
        "| model | published | way | type | layout | chips | sequences | clock | a user's token "
        "| error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        lines.append(
            f"| {one.model} | {one.published_us:,.1f} us ({one.published}) | {one.way} "
            f"| {one.dtype} | `{one.layout}` | {one.chips} | {one.sequences} "
            f"| {one.clock_mhz:,.1f} MHz | {one.token_us:,.1f} us | {one.error_percent:+.1f} % |"
        )
    return "\n".join(lines)
