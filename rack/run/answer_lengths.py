"""Lengths of the timing executor's answers: a seeded distribution.

The timing executor draws tokens at random, so no token ends an answer. Real answers differ in
length, and a load test needs that. A request's length follows from its seed and its prompt alone,
so the same request always gets the same answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rack.errors import ConfigError

DEFAULT = "lognormal:213,1"
"""A median of 129 tokens, as Patel et al., Splitwise (ISCA 2024), found for a conversation service;
`assumption:` the shape, and a sigma of 1."""
ENDLESS = "none"
MOST = 1 << 30
_WANTED = (
    "N, fixed:N, uniform:A,B (1 <= A <= B), lognormal:MEAN,SIGMA (MEAN >= 1, SIGMA 0 to 5) or none"
)
_FIELDS = {"fixed": 1, "uniform": 2, "lognormal": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLengths:
    """The distribution of answers' tokens, unless `max_tokens` or the context ends them first."""

    quantile: Callable[[float], float]  # of a number in (0, 1)

    def of(self, prompt: Sequence[int], seed: int) -> int:
        """Return the length of a request's answer, at least 1."""
        digest = hashlib.sha256(seed.to_bytes(8, "little") + np.asarray(prompt, "<u4").tobytes())
        drawn = (int.from_bytes(digest.digest()[:6], "little") + 0.5) / 2**48
        return max(1, round(self.quantile(drawn)))


def answer_lengths(spec: str) -> AnswerLengths | None:
    """Read `--answer-tokens`; None for answers without end. Raises ConfigError."""
    if spec == ENDLESS:
        return None
    kind, _, rest = spec.partition(":") if ":" in spec else ("fixed", "", spec)
    try:
        values = [float(one) for one in rest.split(",")]
    except ValueError:
        values = []
    if len(values) == _FIELDS.get(kind):
        found = _quantile(kind, values)
        if found is not None:
            return AnswerLengths(quantile=found)
    raise ConfigError(f"answer_tokens: wanted {_WANTED}, got {spec!r}")


def _quantile(kind: str, values: Sequence[float]) -> Callable[[float], float] | None:
    """Return the distribution's quantile function; None if its parameters are not valid."""
    first, last = values[0], values[-1]
    if not 1 <= first <= MOST:  # also not a number
        return None
    if kind == "lognormal":
        if not 0 <= last <= 5:
            return None
        centre, normal = math.log(first) - last * last / 2, NormalDist()
        return lambda drawn: math.exp(centre + last * normal.inv_cdf(drawn))
    whole = all(value.is_integer() for value in values)
    if not whole or not first <= last <= MOST:
        return None
    return lambda drawn: math.floor(first + drawn * (last - first + 1))
