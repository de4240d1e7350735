"""What users are promised: the most that a time may be for a request to count as good."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compiler.files import shown
from rack.errors import ConfigError

KINDS = ("ttft", "tpot", "e2e")
PRESETS = {"server": "ttft=2s,tpot=200ms", "interactive": "ttft=450ms,tpot=40ms"}
"""As MLPerf Inference has them for Llama 2 70B."""
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_WANTED = f"{', '.join(PRESETS)}, or {', '.join(KINDS)} as KIND=TIME,… (450ms, 2s; seconds)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits in seconds; None: any time will do."""

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def met(self, ttft_s: float, tpot_s: float | None, e2e_s: float) -> tuple[bool, ...]:
        """Say of each kind whether its limit is kept; an answer of one token has no TPOT."""
        times = (ttft_s, tpot_s, e2e_s)
        limits = (self.ttft_s, self.tpot_s, self.e2e_s)
        return tuple(
            limit is None or time is None or time <= limit
            for time, limit in zip(times, limits, strict=True)
        )


def parse_slo(text: str) -> Slo:
    """Read `--slo`. Raises ConfigError."""
    limits: dict[str, float] = {}
    for part in PRESETS.get(text, text).split(","):
        kind, _, time = part.partition("=")
        limit = _seconds(time)
        if kind not in KINDS or kind in limits or limit is None:
            raise ConfigError(f"slo: wanted {_WANTED}, got {shown(text)}")
        limits[kind] = limit
    return Slo(name=text, **{f"{kind}_s": limit for kind, limit in limits.items()})


def _seconds(text: str) -> float | None:
    """Return a time above 0; None for anything else."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
