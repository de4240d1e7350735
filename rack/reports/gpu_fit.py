"""Fit the efficiencies of GPUs to measured times a token, and hold the rest of these against them.

The points are in rack/machines/gpus/measured.csv. A time a token was measured while other prompts
were worked on, so a point's load has as many prompt tokens a step as keep `batch` sequences going.

Points are left out by three rules that look at no fit: those on more GPUs than a host has; where
the first token took longer than QUEUED_MS, requests waited for a place and fewer ran than the point
says; and a time shorter than the data sheet allows is not one of this load (prompts that were
cached, or less load).
The others of a GPU are split in the order of the file: of those on one GPU, and of those on
several, the first is fitted to, the second is held back, and so on. A line that stands twice counts
once.

Fitted is the sum of absolute relative errors, by weighted least squares again and again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from compiler.model.presets import PRESETS
from rack.errors import ConfigError
from rack.machines.gpu import MILLE, Efficiency, Gpu, GpuDtype
from rack.reports.accuracy_rows import LLAMA_2
from rack.reports.gpu_time import EXACT, SIZES, Load, Terms, terms

MEASURED = Path(__file__).parents[1] / "machines" / "gpus" / "measured.csv"
COLUMNS = (
    "model", "gpu", "precision", "engine", "tensor_parallel", "input_tokens", "output_tokens",
    "batch", "ttft_ms", "tpot_ms",
)  # fmt: skip
MODELS = {**PRESETS, **LLAMA_2}
STORED = {
    "fp16": GpuDtype.FP16, "bf16": GpuDtype.FP16, "not stated": GpuDtype.FP16,
    "fp8": GpuDtype.FP8, "int8": GpuDtype.INT8, "fp4": GpuDtype.MXFP4,
}  # fmt: skip
"""Precision of a point -> how weights were stored. Where the source does not state it the size and
the times of the points say 16 bits."""
SMALL_CACHE = ("trtllm",)
"""Engines whose default for an fp8 model's KV cache is a byte an element; the others' is two."""
QUEUED_MS = 10_000.0
ROUNDS = 200
LEAST_ERROR = 0.01  # a point nearer than that weighs no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement. `first_ms` is None where the source has none."""

    model: str
    gpu: str
    dtype: GpuDtype
    engine: str
    gpus: int
    input_tokens: int
    output_tokens: int
    batch: int
    first_ms: float | None
    token_ms: float

    def load(self) -> Load:
        """Return what the GPUs worked on, on average over a sequence's tokens."""
        small = self.dtype is GpuDtype.FP8 and self.engine.startswith(SMALL_CACHE)
        return Load(
            config=MODELS[self.model], dtype=self.dtype, gpus=self.gpus, batch=self.batch,
            context=self.input_tokens + self.output_tokens / 2, kv_bytes=1 if small else 2,
            prompt_tokens=self.batch * self.input_tokens / self.output_tokens,
            prompt_context=self.input_tokens / 2,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The points of a GPU: fitted to, held back, and left out, each with the reason."""

    fitted: tuple[Point, ...]
    held: tuple[Point, ...]
    left_out: tuple[tuple[Point, str], ...]


def read_points(path: Path = MEASURED) -> list[Point]:
    """Read measurements. Raises ConfigError, naming the line, for what is not one."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            wanted = ",".join(COLUMNS)
            raise ConfigError(f"{path.name}: wanted the columns {wanted}, got {reader.fieldnames}")
        return [_point(row, f"{path.name}, line {reader.line_num}") for row in reader]


def _point(row: dict[str, str], where: str) -> Point:
    if row["model"] not in MODELS:
        raise ConfigError(f"{where}: wanted a model that is known, got {row['model']!r}")
    if row["precision"] not in STORED:
        wanted = f"one of {', '.join(STORED)}"
        raise ConfigError(f"{where}: precision: wanted {wanted}, got {row['precision']!r}")
    try:
        counts = [
            int(row[key]) for key in ("tensor_parallel", "input_tokens", "output_tokens", "batch")
        ]
        token_ms, first = float(row["tpot_ms"]), row["ttft_ms"]
        first_ms = float(first) if first else None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: wanted numbers, got {error}") from None
    if min(counts) < 1 or not 0 < token_ms < float("inf"):
        raise ConfigError(f"{where}: wanted numbers above 0, got {counts} and {token_ms}")
    gpus, input_tokens, output_tokens, batch = counts
    return Point(
        model=row["model"], gpu=row["gpu"], dtype=STORED[row["precision"]], engine=row["engine"],
        gpus=gpus, input_tokens=input_tokens, output_tokens=output_tokens, batch=batch,
        first_ms=first_ms, token_ms=token_ms,
    )  # fmt: skip


def split(gpu: Gpu, points: Iterable[Point]) -> Points:
    """Split a GPU's points by the rules above."""
    fitted, held, left_out = list[Point](), list[Point](), list[tuple[Point, str]]()
    turns, known = {True: 0, False: 0}, set[Point]()
    for point in points:
        if point.gpu != gpu.name:
            continue
        if reason := "a line that stands twice" if point in known else _reason(gpu, point):
            left_out.append((point, reason))
            continue
        known.add(point)
        several = point.gpus > 1
        (held if turns[several] % 2 else fitted).append(point)
        turns[several] += 1
    return Points(fitted=tuple(fitted), held=tuple(held), left_out=tuple(left_out))


def _reason(gpu: Gpu, point: Point) -> str | None:
    if point.gpus > SIZES[-1]:
        return f"on more than {SIZES[-1]} GPUs"
    if point.first_ms is not None and point.first_ms > QUEUED_MS:
        return f"first token after more than {QUEUED_MS / 1000:.0f} s"
    if terms(gpu, point.load()).seconds(EXACT) * 1000 > point.token_ms:
        return "faster than the data sheet"
    return None


def fit(gpu: Gpu, points: Sequence[Point]) -> Efficiency:
    """Return the efficiencies with the least sum of absolute relative errors, rounded.

    Raises ConfigError for fewer points than efficiencies.
    """
    if len(points) < 3:
        raise ConfigError(f"{gpu.name}: wanted 3 measured points or more, got {len(points)}")
    found = [terms(gpu, point.load()) for point in points]
    measured = np.array([point.token_ms / 1000 for point in points])  # [points] float64
    factors = np.array([1.0, 1.0, 0.0])  # 1 / memory, 1 / compute, layer_s
    for _ in range(ROUNDS):
        parts = _design(found, factors) / measured[:, None]  # [points, 3] float64
        errors = np.abs(parts @ factors - 1)
        weights = 1 / np.sqrt(np.maximum(errors, LEAST_ERROR))
        solved = np.linalg.lstsq(parts * weights[:, None], weights, rcond=None)[0]
        factors = np.maximum(solved, [1.0, 1.0, 0.0])  # no more than the data sheet
    return Efficiency(
        memory=round(MILLE / float(factors[0])) / MILLE,
        compute=round(MILLE / float(factors[1])) / MILLE,
        layer_s=round(float(factors[2]) * 1e7) / 1e7,
    )


def _design(found: Sequence[Terms], factors: np.ndarray) -> np.ndarray:
    """Return what each factor multiplies; the smaller of memory and products counts nothing."""
    rows = []
    for one in found:
        by_memory = one.memory * factors[0] >= one.products * factors[1]
        rows.append((
            (one.memory if by_memory else 0.0) + one.exchange,
            (0.0 if by_memory else one.products) + one.prompts,
            one.layers,
        ))  # fmt: skip
    return np.array(rows)


def error_percent(gpu: Gpu, point: Point, reached: Efficiency) -> float:
    """Return the signed error of our time a token."""
    return (terms(gpu, point.load()).seconds(reached) * 1000 / point.token_ms - 1) * 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """Errors of a GPU's held-back points: of a model or all, on one GPU or several."""

    gpu: str
    model: str  # "all" of all of them
    gpus: str
    points: int
    median_absolute_percent: float
    median_percent: float
    least_percent: float
    most_percent: float


def error_rows(gpu: Gpu, points: Sequence[Point], reached: Efficiency) -> list[ErrorRow]:
    """Return a row for each model and for all, on one GPU and on several."""
    out = []
    models = sorted({point.model for point in points})
    for name in ("all", *models):
        for gpus, several in (("1", False), ("2 to 8", True)):
            errors = [
                error_percent(gpu, point, reached)
                for point in points
                if name in ("all", point.model) and (point.gpus > 1) is several
            ]
            if errors:
                out.append(ErrorRow(
                    gpu=gpu.name, model=name, gpus=gpus, points=len(errors),
                    median_absolute_percent=median(map(abs, errors)),
                    median_percent=median(errors), least_percent=min(errors),
                    most_percent=max(errors),
                ))  # fmt: skip
    return out
