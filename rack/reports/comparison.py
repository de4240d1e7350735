"""A rack beside GPUs, for a batch of sequences: speed, cost and energy, and where lines cross.

Both sides decode alone: every sequence has its context, and no prompt is worked on. A batch that
memory has no room for takes turns, so a user's share falls and the machine's rate does not. The
rack's rates come from its compiled schedule (lpu_batches), a GPU's from its roofline (gpu_time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from compiler.model.config import ModelConfig
from rack.errors import ConfigError
from rack.machines.economics import Economics
from rack.machines.gpu import Gpu, GpuDtype
from rack.machines.hardware import Hardware
from rack.reports.costs import MILLION, Prices, cost, inputs
from rack.reports.gpu_time import (
    EXACT,
    Load,
    balance,
    fewest_gpus,
    intensity,
    places,
    terms,
    weight_bytes,
)
from rack.reports.lpu_batches import Pipeline

MOST_BATCH = 4096  # up to which crossovers are looked for
CACHE_BYTES = {GpuDtype.FP8: 1, GpuDtype.INT8: 1}  # an element of the KV cache; others take 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a comparison needs of either side. `places`: sequences that memory has room for."""

    name: str
    chips: int
    economics: Economics
    places: int
    rate: Callable[[int], float]  # tokens a second in all, of so many in flight

    def tokens_per_s(self, batch: int) -> float:
        """Return tokens a second in all."""
        return self.rate(min(batch, self.places))

    def row(self, batch: int, prices: Prices) -> dict[str, Any]:
        """Return what a batch gets."""
        rate = self.tokens_per_s(batch)
        found = cost(self.economics, self.chips, rate, prices).to_dict()
        joules = found.pop("joules_per_million_tokens")
        return {
            "batch": batch,
            "in_flight": min(batch, self.places),
            "tpot_ms": batch / rate * 1000,
            "tokens_per_s_user": rate / batch,
            "tokens_per_s": rate,
            **found,
            "joules_per_token": joules / MILLION,
        }


def rack_machine(found: Pipeline, hardware: Hardware) -> Machine:
    """Return a rack with a compiled model as a side of a comparison."""
    return Machine(
        name=hardware.name, chips=found.chips, economics=hardware.economics, places=found.places,
        rate=found.tokens_per_s,
    )  # fmt: skip


def gpu_load(
    gpu: Gpu, config: ModelConfig, dtype: GpuDtype, context: int, gpus: int | None
) -> Load:
    """Return one sequence on the fewest GPUs that hold it, or on so many.

    Raises ConfigError where they do not hold it.
    """
    load = Load(
        config=config, dtype=dtype, gpus=gpus or 1, batch=1, context=context,
        kv_bytes=CACHE_BYTES.get(dtype, 2),
    )  # fmt: skip
    fewest = fewest_gpus(gpu, load)
    if fewest is None or (gpus is not None and places(gpu, load) < 1):
        size = weight_bytes(config, dtype) / 1e9
        wanted = "a smaller --gpu-dtype" if fewest is None else f"--gpu-tp {fewest} or more"
        raise ConfigError(
            f"{gpu.name}: {config.name} in {dtype} takes {size:,.1f} GB and a KV cache: wanted "
            f"{wanted}, got {gpus or 'no number of GPUs that holds it'}"
        )
    return replace(load, gpus=gpus or fewest)


def gpu_machine(gpu: Gpu, load: Load) -> Machine:
    """Return GPUs with a model as a side of a comparison."""

    @cache
    def rate(batch: int) -> float:
        return batch / terms(gpu, replace(load, batch=batch)).seconds(gpu.efficiency)

    return Machine(
        name=gpu.name, chips=load.gpus, economics=gpu.economics, places=places(gpu, load), rate=rate
    )


BETTER: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "throughput": lambda gpu, rack: gpu["tokens_per_s"] > rack["tokens_per_s"],
    "cost": lambda gpu, rack: gpu["usd_per_million_tokens"] < rack["usd_per_million_tokens"],
    "energy": lambda gpu, rack: gpu["joules_per_token"] < rack["joules_per_token"],
}


def crossovers(rack: Machine, gpu: Machine, prices: Prices) -> dict[str, int | None]:
    """Return the least batch at which GPUs overtake the rack, by what; None up to MOST_BATCH."""
    found: dict[str, int | None] = dict.fromkeys(BETTER)
    for batch in range(1, MOST_BATCH + 1):
        pair = gpu.row(batch, prices), rack.row(batch, prices)
        for what, better in BETTER.items():
            if found[what] is None and better(*pair):
                found[what] = batch
        if None not in found.values():
            break
    return found


def gpu_roofline(gpu: Gpu, load: Load, batches: Sequence[int]) -> dict[str, Any]:
    """Return a GPU's ridge, a model's operations a byte by batch, and where both meet."""
    reached = gpu.efficiency
    return {
        "gpus": load.gpus,
        "products_in": str(gpu.products_in(load.dtype)),
        "ridge_operations_per_byte": gpu.ridge(load.dtype),
        "ridge_as_measured": gpu.ridge(load.dtype) * reached.compute / reached.memory,
        "intensity": [
            {"batch": batch, "operations_per_byte": intensity(replace(load, batch=batch))}
            for batch in batches
        ],
        "compute_bound_batch": {
            "data_sheet": balance(gpu, load, EXACT, MOST_BATCH),
            "as_measured": balance(gpu, load, reached, MOST_BATCH),
        },
    }


def rack_roofline(hardware: Hardware, dtype: str) -> dict[str, Any]:
    """Return a chip's ridge over its streams and its SRAM. A token reads each weight once."""
    chip = hardware.chip
    slow = chip.mxm_fp16_slowdown if dtype == "fp16" else 1
    per_cycle = 2 * chip.mxm_planes * chip.mxm_rows * chip.mxm_columns / slow
    bits = {"int4": 4, "int8": 8, "fp16": 16}[dtype]
    return {
        "ridge_over_streams": per_cycle / (chip.streams * chip.lanes),
        "ridge_over_sram": per_cycle / (chip.slices * chip.lanes * 2),
        "intensity": 2 * 8 / bits,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A GPU in a comparison."""

    gpu: Gpu
    load: Load
    machine: Machine

    def prompts(self) -> Load:
        """Return a token of a prompt on the same GPUs; it sees half of the context, on average."""
        return replace(self.load, prompt_tokens=1.0, prompt_context=self.load.context / 2)


def compare(
    rack: Machine, sides: Sequence[Side], batches: Sequence[int], prices: Prices
) -> dict[str, Any]:
    """Return both sides' rows and where they cross, as plain data."""
    return {
        "lpu": [rack.row(batch, prices) for batch in batches],
        "gpu": {
            side.gpu.name: [side.machine.row(batch, prices) for batch in batches] for side in sides
        },
        "crossover_batch": {
            side.gpu.name: crossovers(rack, side.machine, prices) for side in sides
        },
        "inputs": {
            "lpu": inputs(rack.economics, rack.chips, prices),
            "gpu": {
                side.gpu.name: inputs(side.machine.economics, side.machine.chips, prices)
                for side in sides
            },
        },
    }  # fmt: skip
