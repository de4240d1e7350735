"""Published latencies of BERT on GroqChips, and ours from the cycles of compiled programs.

Chips take the same cycles in every run. What makes runs differ is the host, whose model here is an
assumption and named as such: each of the two ways over PCIe begins late by a time of its own, drawn
from an exponential distribution. Its mean is no fit to the published runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compiler.model.presets import PRESETS
from compiler.pipeline import Options, compile_model
from compiler.place.layout import Layout, parse_layout
from compiler.schedule.interval import initiation_cycles
from rack.machines.hardware import Hardware
from rack.reports.accuracy import Row

HOST_JITTER_US = 5.0  # assumption: driver and DMA start within some microseconds; unpublished
RUNS = 24_240  # of the published histogram
LAYERS, TOKENS = 6, 384  # encoder layers a chip, and what BERT-Large is shown with
BAR_US = 5.0  # width of a histogram's bar
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRuns:
    """So many runs of one program: `us` [runs], sorted, each the program's time and the host's."""

    program_us: float
    us: F64

    @classmethod
    def draw(cls, program_us: float, runs: int, jitter_us: float, seed: int) -> HostRuns:
        """Draw what the host adds on the way in and on the way out."""
        generator = np.random.Generator(np.random.Philox(seed))
        late = generator.exponential(jitter_us, (runs, 2)).sum(axis=1)
        return cls(program_us=program_us, us=np.sort(program_us + late))

    def quantile(self, share: float) -> float:
        """Return the time within which this share of the runs ends."""
        return float(self.us[min(len(self.us) - 1, int(np.ceil(share * len(self.us))) - 1)])

    @property
    def off_percent(self) -> float:
        """How far the program's own time is below the runs' median, in percent of that."""
        middle = self.quantile(0.5)
        return (middle - self.program_us) / middle * 100

    def histogram(self) -> list[tuple[float, int]]:
        """Return (lower edge, runs) of each bar."""
        first = np.floor(self.us[0] / BAR_US)
        bars = (self.us // BAR_US - first).astype(np.int64)
        return [
            (float((first + n) * BAR_US), int(count)) for n, count in enumerate(np.bincount(bars))
        ]


def layer_cycles(hardware: Hardware, layers: int, chips: int, dtype: str) -> tuple[int, int]:
    """Return, of BERT-Large with so many layers on so many chips, cycles of a sequence's program.

    Then the cycles between two sequences that follow each other: the initiation interval, at which
    every chip ends one step before it begins the next.
    """
    model = replace(PRESETS["bert-large"], name=f"bert-large of {layers}", num_layers=layers)
    options = Options(dtype=dtype, max_model_len=TOKENS, buckets=(TOKENS,))
    compiled = compile_model(model, hardware, Layout(stages=chips, group=1), options)
    step = compiled.encode_step(TOKENS)
    return step.cycles, initiation_cycles(step, step)


def scaling_rows(hardware: Hardware) -> list[Row]:
    """Six encoder layers a chip on 1, 4, 8 and 16 chips: published as linear (ISCA 2022, Fig. 18).

    Layers a second with the sequences as close as the schedule lets them follow, and the time of
    one sequence, both over those of one chip.
    """
    one = layer_cycles(hardware, LAYERS, 1, "fp16")
    out = []
    for chips in (4, 8, 16):
        latency, interval = layer_cycles(hardware, chips * LAYERS, chips, "fp16")
        name = (
            f"{chips * LAYERS} encoder layers on {chips} chips, {TOKENS} tokens, fp16, over 6 on 1"
        )
        for what, ours in (
            ("layers a second, a sequence each initiation interval", chips * one[1] / interval),
            ("time of one sequence", latency / one[0]),
        ):
            out.append(
                Row(
                    part="encoder", figure=f"{name}: {what}", unit="times", published=chips,
                    grade="A" if "second" in what else "D",
                    source="ISCA 2022, Fig. 18: linear", ours=ours,
                    constants=("chip.*", "delays.*", "link.*", "clock.*", "host.*", "system.*"),
                )
            )  # fmt: skip
    return out


def sequence_cycles(hardware: Hardware, model: str, layout: str, tokens: int, dtype: str) -> int:
    """Return the cycles of one sequence of a preset, host port included."""
    options = Options(dtype=dtype, max_model_len=tokens, buckets=(tokens,))
    compiled = compile_model(PRESETS[model], hardware, parse_layout(layout), options)
    return compiled.encode_step(tokens).cycles


def encoder_rows(hardware: Hardware) -> list[Row]:
    """BERT-base on one chip, BERT-Large on four with the host's ways."""
    keys = ("chip.*", "delays.*", "link.*", "clock.*", "host.*", "system.*")

    def us(model: str, layout: str, tokens: int, dtype: str) -> float:
        cycles = sequence_cycles(hardware, model, layout, tokens, dtype)
        return cycles * 1e6 / hardware.chip.clock_hz

    def row(
        figure: str, unit: str, wanted: float | tuple[float, float], source: str, ours: float
    ) -> Row:
        return Row(
            part="encoder", figure=figure, unit=unit, published=wanted, grade="A", source=source,
            ours=ours, constants=keys,
        )  # fmt: skip

    base = [
        row(f"BERT-base, 128 tokens, one chip, {dtype}", "us", 130, "vendor's brief; dtype unknown",
            us("bert-base", "1x1", 128, dtype))
        for dtype in ("fp16", "int8")
    ]  # fmt: skip
    jitter, source = "host jitter assumed", "ISCA 2022, 5.4; tokens and dtype unknown"
    large = []
    for layout in ("4x1", "1x4"):
        runs = HostRuns.draw(us("bert-large", layout, 384, "fp16"), RUNS, HOST_JITTER_US, seed=0)
        name = f"BERT-Large, 384 tokens, four chips ({layout}), fp16, PCIe in and out"
        large += [
            row(f"{name}: 99 % of 24,240 runs, {jitter}", "us", (0, 1225), source,
                runs.quantile(0.99)),
            row(f"{name}: all of them, {jitter}", "us", (0, 1300), source, runs.quantile(1)),
            row(f"{name}: the compiler's figure below the median, {jitter}", "%", (0, 2), source,
                runs.off_percent),
        ]  # fmt: skip
    return [*base, *large]
