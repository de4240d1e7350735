"""What `rack.validate gpus` shows: fitted efficiencies, errors on held-back points, ridges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compiler.model.presets import PRESETS
from rack.machines.gpu import MILLE, Efficiency, Gpu, GpuDtype, load_gpu
from rack.reports.gpu_fit import ErrorRow, Points, error_rows, fit, read_points, split
from rack.reports.gpu_time import EXACT, Load, balance

SHIPPED = ("a100-80", "h100-sxm", "h200")
"""GPUs with measured points."""
LESSON = "h100-lesson"
RIDGED = "llama-8b"
CONTEXTS = (1, 512, 2048)  # of the batches at which products take as long as memory
MOST_BATCH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A GPU, its points, the efficiencies that come out, and their errors."""

    gpu: Gpu
    points: Points
    reached: Efficiency
    errors: tuple[ErrorRow, ...]

    def lines(self) -> Iterator[str]:
        """Yield what was fitted to, and the efficiencies as the GPU's file has them."""
        left = Counter(reason for _, reason in self.points.left_out)
        out = ", ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
        yield (
            f"{self.gpu.name}: fitted to {len(self.points.fitted)} points, "
            f"{len(self.points.held)} held back; left out: {out or 'none'}"
        )
        for key, value in keys_of(self.reached).items():
            yield f"    {key} = {value}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "gpu": self.gpu.name,
            "fitted": asdict(self.reached),
            "in_profile": asdict(self.gpu.efficiency),
            "points": {
                "fitted": len(self.points.fitted),
                "held_back": len(self.points.held),
                "left_out": dict(Counter(reason for _, reason in self.points.left_out)),
            },
            "errors": [asdict(row) for row in self.errors],
        }


def keys_of(reached: Efficiency) -> dict[str, int]:
    """Return efficiencies as the keys of a GPU's file."""
    return {
        "memory_permille": round(reached.memory * MILLE),
        "compute_permille": round(reached.compute * MILLE),
        "layer_ns": round(reached.layer_s * 1e9),
    }


def fitted_gpus(names: Sequence[str]) -> list[Fitted]:
    """Fit GPUs anew, each to one half of its points."""
    points, out = read_points(), []
    for name in names:
        gpu = load_gpu(name)
        found = split(gpu, points)
        reached = fit(gpu, found.fitted)
        rows = tuple(error_rows(gpu, found.held, reached))
        out.append(Fitted(gpu=gpu, points=found, reached=reached, errors=rows))
    return out


def markdown(found: Sequence[Fitted]) -> str:
    """Write the tables of docs/gpus.md."""
    lines = [
        "| GPU | memory reached | peak reached | a layer takes beside | fitted to | held back "
        "| left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        left = Counter(reason for _, reason in one.points.left_out)
        out = ", ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
        lines.append(
            f"| {one.gpu.name} | {one.reached.memory:.1%} | {one.reached.compute:.1%} "
            f"| {one.reached.layer_s * 1e6:.1f} us | {len(one.points.fitted)} points "
            f"| {len(one.points.held)} points | {out or 'none'} |"
        )
    lines += [
        "",
        "| GPU | model | GPUs | held-back points | median of absolute errors | median error "
        "| from | to |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        for row in one.errors:
            lines.append(
                f"| {row.gpu} | {row.model} | {row.gpus} | {row.points} "
                f"| {row.median_absolute_percent:.1f} % | {row.median_percent:+.1f} % "
                f"| {row.least_percent:+.1f} % | {row.most_percent:+.1f} % |"
            )
    return "\n".join([*lines, "", *_ridges(found)])


def _ridges(found: Sequence[Fitted]) -> Iterator[str]:
    yield (
        "| GPU | ridge, fp16: operations a byte | "
        + " | ".join(
            f"{RIDGED}, fp16: batch at which products take as long as memory, context {context}"
            for context in CONTEXTS
        )
        + " |"
    )
    yield "|---" * (2 + len(CONTEXTS)) + "|"
    fitted = {one.gpu.name: one.reached for one in found}
    for name in (LESSON, *fitted):
        gpu = load_gpu(name)
        kinds = [("data sheet", EXACT)] if name in fitted else [("course text", EXACT)]
        if name in fitted:
            kinds.append(("as measured", fitted[name]))
        for kind, reached in kinds:
            ridge = gpu.ridge(GpuDtype.FP16) * reached.compute / reached.memory
            cells = (_balance(gpu, context, reached) for context in CONTEXTS)
            yield f"| {name}, {kind} | {ridge:.1f} | {' | '.join(cells)} |"


def _balance(gpu: Gpu, context: int, reached: Efficiency) -> str:
    load = Load(
        config=PRESETS[RIDGED], dtype=GpuDtype.FP16, gpus=1, batch=1, context=context, kv_bytes=2
    )
    batch = balance(gpu, load, reached, MOST_BATCH)
    return f"none up to {MOST_BATCH:,}" if batch is None else str(batch)
