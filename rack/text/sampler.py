"""Pick a token from logits: greedy, or temperature with top-k and top-p, on the host.

The same seed and position give the same token on every machine: the random number is Philox keyed
by (seed, position), exp is the project's own, sums run in order of rank, ties go to the lowest id.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.kernels import vmath
from rack.errors import RequestError
from rack.text.grammar import Grammar

LEAST_TEMPERATURE = 1e-5  # below it greedy: its reciprocal would leave fp32's range

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a completion is drawn and when it ends. Raises RequestError for values out of range."""

    temperature: float = 0.0  # 0 is greedy, and so is less than LEAST_TEMPERATURE
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int = 0
    max_tokens: int | None = None  # None: as far as the context goes
    min_tokens: int = 0  # no end-of-sequence before this many
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None  # what the completion is held to

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, wanted: str) -> None:
            if not ok:
                raise RequestError(param=name, wanted=wanted, got=repr(getattr(self, name)))

        check("temperature", 0.0 <= self.temperature <= 2.0, "a number from 0 to 2")
        check("top_p", 0.0 < self.top_p <= 1.0, "a number above 0, at most 1")
        check("top_k", self.top_k >= 0, "0 (no limit) or more")
        check("seed", 0 <= self.seed < 1 << 64, "an integer in 0..2^64-1")
        check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "1 or more")
        check("min_tokens", self.min_tokens >= 0, "0 or more")
        free = self.grammar is None or not (self.min_tokens or self.ignore_eos)
        name = "min_tokens" if self.min_tokens else "ignore_eos"
        format_ = self.grammar is None or self.grammar.param == "response_format"
        of = "a response_format, which says itself where it ends"
        calls = "tools that must be called, which say themselves where they end"
        check(name, free, f"none with {of if format_ else calls}")
        check("stop", len(self.stop) <= 4 and all(self.stop), "up to 4 strings, none empty")


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) of a seed and a position: 53 bits of Philox."""
    return uniforms(seed, position, 1)[0]


def uniforms(seed: int, position: int, count: int) -> list[float]:
    """Return several such numbers; the first is `uniform`'s."""
    bits = np.random.Philox(key=np.array([seed, position], np.uint64)).random_raw(count)
    return [float(int(one) >> 11) * 2.0**-53 for one in bits]


def sample(ids: I64, logits: F32, params: SamplingParams, position: int) -> int:
    """Pick one of `ids`, whose logits are [n] fp32; both in any order."""
    order = np.lexsort((ids, -logits))  # by falling logit, ties to the lowest id
    if params.temperature < LEAST_TEMPERATURE:
        return int(ids[order[0]])
    if params.top_k:
        order = order[: params.top_k]
    scaled = (logits[order] - logits[order[0]]) * np.float32(1.0 / params.temperature)
    weights = vmath.exp(scaled).astype(np.float64)
    cumulative = np.cumsum(weights)
    if params.top_p < 1.0:
        kept = int(np.searchsorted(cumulative, params.top_p * cumulative[-1])) + 1
        cumulative = cumulative[:kept]
    place = int(
        np.searchsorted(cumulative, uniform(params.seed, position) * cumulative[-1], "right")
    )
    return int(ids[order[min(place, len(cumulative) - 1)]])
