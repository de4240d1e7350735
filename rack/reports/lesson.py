"""The course text number by number: what it says, what it counts, and what the machine gives.

The text counts bytes of weights over 230 MB of SRAM, and bytes over a bandwidth. The machine lays
out a model with its scales, KV cache and buffers, and schedules a token of it. Each row says why
the two differ. What the text says is taken from docs/hardware.md and the profile; where only its
way of counting is known, `said` is None and the arithmetic stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any

from compiler.errors import CompilerError
from compiler.model.config import ModelConfig
from compiler.model.presets import PRESETS
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.auto import smallest_layout
from compiler.place.layout import parse_layout
from rack.machines.gpu import GpuDtype, load_gpu
from rack.machines.hardware import Hardware, SharedEgress
from rack.reports.accuracy import number
from rack.reports.accuracy_rows import LLAMA_2
from rack.reports.gpu_time import EXACT, Load, terms
from rack.reports.sequences import paces
from rack.run.timing_rack import TimingRack

CHIP_BYTES = 230e6  # as the text has it
CONTEXT = 512
REQUESTS, TOKENS = 50, 4  # of the percentiles
BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}
RATES = (
    ("llama-8b", "8x4+4", 750, "500 to 750"), ("llama-70b", "40x8+8", 280, "280"),
    ("llama-70b", "40x8+8", 275, "275 (3.3)"), ("mixtral-8x7b", "32x7+7", 500, "500"),
    ("gemma2-9b", "6x8+6", 500, "500"),
)  # fmt: skip
"""Model, layout as `--layout auto` chooses it, tokens a second in the text, and as it says it."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonRow:
    """One figure: in the text, by its arithmetic on its inputs, and from the machine."""

    part: str
    figure: str
    unit: str
    said: str | None
    counted: float | None
    ours: float | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row as it is shown."""

        def told(value: float | None) -> str:
            return "-" if value is None else f"{number(value)} {self.unit}".rstrip()

        said = "-" if self.said is None else f"{self.said} {self.unit}".rstrip()
        return self.part, self.figure, said, told(self.counted), told(self.ours), self.why


HEAD = ("part", "figure", "course text", "by its arithmetic", "the machine", "why they differ")


def lesson_rows(hardware: Hardware, progress: Progress) -> list[LessonRow]:
    """Return all rows; some models are compiled for it."""
    return [
        *machine_rows(hardware),
        *capacity_rows(hardware, progress),
        *gpu_rows(),
        *rate_rows(hardware, progress),
    ]


def machine_rows(hardware: Hardware) -> Iterator[LessonRow]:
    """Yield the rack itself."""
    chip, chips = hardware.chip, hardware.chips_per_rack
    rate = chip.slices * 2 * chip.lanes * chip.clock_hz / 1e12
    streams = chip.stream_bytes_per_cycle * chip.clock_hz / 1e12
    link = hardware.chip_link
    assert isinstance(link, SharedEgress)  # lesson's; another machine has no such rows
    egress = float(link.egress_bps) * chips * 2 / 1e12

    def row(
        figure: str, unit: str, said: str, counted: float | None, ours: float, why: str = "equal"
    ) -> LessonRow:
        return LessonRow(
            part="rack", figure=figure, unit=unit, said=said, counted=counted, ours=ours, why=why
        )

    yield row(
        "SRAM of a chip", "MB", "230", None, chip.sram_bytes / 1e6,
        "88 slices of 2.5 MiB; the text rounds",
    )  # fmt: skip
    yield row("cards of a rack", "", "9", None, hardware.cards_per_rack)
    yield row("chips of a rack", "", "18", 9 * 2, chips)
    yield row(
        "SRAM of a rack", "GB", "4.14", 18 * CHIP_BYTES / 1e9, chips * chip.sram_bytes / 1e9,
        "230.69 MB a chip, not 230",
    )  # fmt: skip
    yield row(
        "SRAM bandwidth of a chip", "TB/s", "80", None, rate,
        "ports give 56,320 B a cycle; 80 TB/s cannot be derived from them. What reaches products "
        f"is bound by the streams: {streams:.1f} TB/s",
    )  # fmt: skip
    yield row(
        "chip to chip, a rack", "Tb/s", "4.1", None, egress,
        "both ways counted (an assumption), shared by the ports that a layout cables",
    )  # fmt: skip


def capacity_rows(hardware: Hardware, progress: Progress) -> Iterator[LessonRow]:
    """Yield chips, cards and racks of 7B and 70B by type of weights."""
    jobs: list[tuple[float, str, str, str | None]] = [
        *((7e9, "llama-2-7b", dtype, None) for dtype in BYTES),
        (70e9, "llama-2-70b", "int8", None),
        (70e9, "llama-2-70b", "int4", "152+, elsewhere 18+"),
    ]
    for done, (weights, model, dtype, said) in enumerate(jobs):
        progress("capacity", done, len(jobs))
        counted = math.ceil(weights * BYTES[dtype] / CHIP_BYTES)
        layout = None if dtype == "fp32" else _smallest(LLAMA_2[model], hardware, dtype)
        chips = None if layout is None else layout[1]
        why = (
            "the array takes no fp32"
            if layout is None
            else f"layout {layout[0]}: whole layers and heads on a chip, scales, a KV cache of "
            f"{layout[2]:,} tokens and buffers beside the weights; the embedding table stays on "
            "the host"
        )
        yield LessonRow(
            part="capacity", figure=f"{weights / 1e9:.0f}B in {dtype}", unit="chips", said=said,
            counted=counted, ours=chips, why=why,
        )  # fmt: skip
        if chips is not None:
            yield from _places(hardware, f"{weights / 1e9:.0f}B in {dtype}", counted, chips)
    progress("capacity", len(jobs), len(jobs))


def _places(hardware: Hardware, what: str, counted: int, chips: int) -> Iterator[LessonRow]:
    for unit, size, said in (
        ("cards", hardware.chips_per_card, None),
        ("racks", hardware.chips_per_rack, "multiple" if what.startswith("70B") else None),
    ):
        yield LessonRow(
            part="capacity", figure=f"{what}: {unit}", unit=unit, said=said,
            counted=math.ceil(counted / size), ours=math.ceil(chips / size),
            why=f"{size} chips each",
        )  # fmt: skip


def _smallest(config: ModelConfig, hardware: Hardware, dtype: str) -> tuple[str, int, int]:
    """Return the layout with the fewest chips, their number, and the context it has room for."""
    context = min(1728, config.max_position_embeddings)  # what --layout auto leaves room for
    layout = smallest_layout(config, hardware, Options(dtype=dtype, max_model_len=context))
    if layout is None:
        raise CompilerError(f"{config.name}: no layout of {hardware.name} holds it in {dtype}")
    return str(layout), layout.chips, context


def gpu_rows() -> Iterator[LessonRow]:
    """Yield the text's arithmetic on a GPU, and what measured GPUs make of it."""
    lesson, h100 = load_gpu("h100-lesson"), load_gpu("h100-sxm")
    reached = h100.efficiency
    ridge = h100.ridge(GpuDtype.FP16)
    yield LessonRow(
        part="GPU", figure="ridge: operations a byte, fp16, which with 2-byte weights is the batch "
        "from which products bound a token", unit="", said="148",
        counted=lesson.ridge(GpuDtype.FP16), ours=ridge * reached.compute / reached.memory,
        why="the text divides 312 TFLOPS by 2.1 TB/s, nearer an A100's figures; an H100 has "
        f"{ridge:.1f} by its data sheet, and reaches {reached.compute:.0%} of its peak and "
        f"{reached.memory:.0%} of its bandwidth where it was measured (docs/gpus.md)",
    )  # fmt: skip
    load = Load(
        config=LLAMA_2["llama-2-7b"], dtype=GpuDtype.FP16, gpus=1, batch=1, context=CONTEXT,
        kv_bytes=2,
    )  # fmt: skip
    found = terms(h100, load)
    yield LessonRow(
        part="GPU", figure="7B in fp16 on an H100, one sequence", unit="tokens/s", said="239",
        counted=h100.memory_bytes_per_s / 14e9, ours=1 / found.seconds(reached),
        why="the text divides 3.35 TB/s by 14 GB; of a real 7B and its KV cache the data sheet "
        f"allows {1 / found.seconds(EXACT):.0f}, and measured GPUs reach less and take "
        f"{reached.layer_s * 1e6 / 2:.0f} us a layer beside",
    )  # fmt: skip


def rate_rows(hardware: Hardware, progress: Progress) -> Iterator[LessonRow]:
    """Yield tokens a second and the time of a token, of one sequence; and percentiles."""
    models: dict[str, CompiledModel] = {}
    for done, (model, layout, rate, said) in enumerate(RATES):
        progress("rates", done, len(RATES))
        if model not in models:
            models[model] = _compiled(PRESETS[model], hardware, layout)
        compiled = models[model]
        pace, clock_hz = paces(compiled, CONTEXT)[0], compiled.chip.clock_hz
        ours, full = clock_hz / pace.cycles, clock_hz / pace.interval_cycles
        sharing = max(1, round(full / rate))
        why = (
            f"one sequence alone on {compiled.layout.chips} chips ({layout}, int8, context "
            f"{CONTEXT}); the pipeline makes {full:,.0f} tokens/s in all, so a user has some "
            f"{rate} where {sharing} share it, on chips that hold their KV caches: see the search "
            "below"
        )
        yield LessonRow(
            part="rate", figure=model, unit="tokens/s", said=said, counted=None, ours=ours, why=why
        )
        yield LessonRow(
            part="rate", figure=f"{model}: time of a token", unit="us", said=None,
            counted=1e6 / rate, ours=1e6 / ours, why=f"the same; counted from {rate} tokens/s",
        )  # fmt: skip
    progress("rates", len(RATES), len(RATES))
    yield LessonRow(
        part="rate", figure=f"P99 over P50 of {REQUESTS} equal requests to llama-8b", unit="",
        said="1 (P99 = P50)", counted=None, ours=percentiles(models["llama-8b"]),
        why="equal: a schedule is static, so equal requests take the same number of cycles",
    )  # fmt: skip


def _compiled(config: ModelConfig, hardware: Hardware, layout: str) -> CompiledModel:
    longest = min(2 * CONTEXT, config.max_position_embeddings)
    return compile_model(
        config, hardware, parse_layout(layout),
        Options(max_model_len=longest, buckets=(CONTEXT,)), kinds="decode", contexts=(CONTEXT,),
    )  # fmt: skip


def percentiles(compiled: CompiledModel) -> float:
    """Return P99 over P50 of the emulated cycles of equal requests, run by the timing executor."""
    rack, cycles = TimingRack(compiled), list[int]()
    step = compiled.step(1, 1, decode=True).name
    for _ in range(REQUESTS):
        rack.reset()
        cycles.append(sum(rack.run_step(step, [at], [0]).cycles for at in range(TOKENS)))
    cuts = quantiles(cycles, n=100, method="inclusive")
    return cuts[98] / cuts[49]


def markdown(rows: Sequence[LessonRow]) -> str:
    """Write the table of docs/lesson.md."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    lines += [f"| {' | '.join(row.cells)} |" for row in rows]
    return "\n".join(lines)
