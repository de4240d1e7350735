"""The keys of a machine's profile: which there are, their bounds, and which have one value only.

Bounds keep every accepted machine small enough to compile; they are far beyond what is built. Some
keys have one value only: instruction templates rely on that value, or none of them uses the key.
Such a key documents the machine, and a file with another value is refused.
"""

from __future__ import annotations

from chip.isa.instructions import MNEMONICS
from chip.spec import MODELLED, VECTOR_BYTES
from compiler.files import shown
from interconnect.fec import WORD_BITS
from rack.errors import ProfileError
from rack.machines.economics import ECONOMIC_KEYS, check_economics

TABLES = ("chip", "delays", "system", "link", "clock", "errors", "host", "economics")
MOST_CYCLES = 1_000_000  # of a latency: a millisecond and more
MOST_TIME = 1_000_000  # ns of a latency, ps of what strays
MOST_DELAY = 64  # of one instruction
MOST_CHIPS = 1024  # of a rack
MOST_PORTS = 64  # of a chip
MOST_SLOT = 1_000_000  # cycles that one vector may take on a link
MOST_BPS = 10**16

TEXTS = {"system.cabling": ("free", "dragonfly"), "link.rate": ("per_link", "shared_egress")}
UNUSED_DELAYS = (
    *("GATHER", "SCATTER", "SHIFT", "ROTATE", "DISTRIBUTE", "SELECT", "SEND", "MIN", "CVT_I32"),
    *("DESKEW", "RUNTIME_DESKEW", "IFETCH", "CONFIG"),
)
"""Instructions that no program has, or none waits for: their delays change no compiled cycle."""

WORD_BYTES = MODELLED["slices"] * MODELLED["banks"] * VECTOR_BYTES  # one word of every bank
RANGES = {
    "chip.clock_hz": (1, 10**12),
    "chip.sram_bytes": (WORD_BYTES, 1 << 32),
    "chip.forward_cycles": (1, MOST_CYCLES),
    "chip.slices_per_hop": (2, MODELLED["slices"] // MODELLED["hemispheres"]),
    "chip.mxm_activation_slots": (16, 4096),
    "chip.mxm_accumulator_rows": (16, 4096),
    "chip.mxm_int4_columns": (1, 2),
    "system.chips_per_card": (1, MOST_CHIPS),
    "system.cards_per_rack": (1, MOST_CHIPS),
    "system.chips_per_node": (1, MOST_CHIPS),
    "system.ports_per_chip": (1, MOST_PORTS),
    "system.local_ports": (1, MOST_PORTS),
    "system.global_ports": (1, MOST_PORTS),
    "link.lanes": (1, 1024),
    "link.line_rate_bps": (1, MOST_BPS),
    "link.encoding_payload": (1, 10**6),
    "link.encoding_total": (1, 10**6),
    "link.rack_bps": (1, MOST_BPS),
    "link.rack_bps_directions": (1, 2),
    "link.overhead_bytes": (0, 10**6),
    "link.latency_ns": (1, MOST_TIME),
    "link.global_latency_ns": (1, MOST_TIME),
    "link.optical_latency_ns": (1, MOST_TIME),
    "clock.drift_ppm": (0, 9_999),
    "clock.jitter_ps": (0, MOST_TIME),
    "clock.latency_sigma_ps": (0, MOST_TIME),
    "clock.hac_period_cycles": (1, MOST_CYCLES),
    "clock.hac_exchange_cycles": (1, MOST_CYCLES),
    "clock.realign_cycles": (1, 10**9),
    "clock.seed": (0, (1 << 64) - 1),
    "errors.burst_bits": (2, WORD_BITS),
    "errors.seed": (0, (1 << 64) - 1),
    "host.payload_bps": (1, MOST_BPS),
    "host.overhead_bytes": (0, 10**6),
    "host.latency_ns": (1, MOST_TIME),
    "host.turnaround_ns": (0, MOST_TIME),
}
"""The least and the most of every whole number that may vary."""

_FAR_RATES = tuple(
    f"errors.{kind}_{rate}" for kind in ("global", "optical")
    for rate in ("bit_error_rate", "burst_rate")
)  # fmt: skip
RATES = ("errors.bit_error_rate", "errors.burst_rate", *_FAR_RATES)
"""Numbers from 0 to below 1, which need not be whole."""

ONLY = {  # keys that one choice needs, and that change nothing without it
    "dragonfly": (
        *("system.chips_per_node", "system.local_ports", "system.global_ports"),
        *("link.global_latency_ns", "link.optical_latency_ns"),
        *_FAR_RATES,
    ),
    "free": (),
    "per_link": tuple(
        f"link.{key}" for key in ("lanes", "line_rate_bps", "encoding_payload", "encoding_total")
    ),
    "shared_egress": ("link.rack_bps", "link.rack_bps_directions"),
    "straying clocks": (
        "clock.hac_period_cycles",
        "clock.hac_exchange_cycles",
        "clock.realign_cycles",
    ),
    "drawn latencies": ("clock.seed",),
    "exact clocks": (),
    "links that err": ("errors.seed",),
    "bursts": ("errors.burst_bits",),
    "links without errors": (),
}
_CONDITIONAL = frozenset().union(*ONLY.values())
COMMON = (
    *(f"chip.{name}" for name in MODELLED),
    *TEXTS,
    *(key for key in (*RANGES, *RATES) if key not in _CONDITIONAL),
    *(f"delays.{name}" for name in MNEMONICS),
)
"""Keys that every profile has."""

LEFT_OPEN = {
    **dict.fromkeys((*ONLY["straying clocks"], *ONLY["drawn latencies"]), "groqrack-drift"),
    **dict.fromkeys(RATES, "groqrack"),
    **dict.fromkeys((*ONLY["links that err"], *ONLY["bursts"]), "groqrack-errors"),
}
"""Keys that a profile may leave open, and the shipped one whose value it has then."""

KNOWN = _CONDITIONAL.union(COMMON, ECONOMIC_KEYS)
REMOVED = {
    **dict.fromkeys(
        (
            "chip.mem_latency_cycles", "chip.mxm_fill_cycles", "chip.vxm_latency_cycles",
            "chip.vxm_chain", "chip.lane_reduce_cycles", "chip.sxm_latency_cycles",
        ),
        "it follows from delays and chip.slices_per_hop",
    ),
    "chip.ecc_bits_per_word": "it changed nothing",
    "link.latency_cycles": "it is link.latency_ns",
    "clock.jitter_mcycles": "it is clock.jitter_ps",
    "clock.latency_sigma_mcycles": "it is clock.latency_sigma_ps",
    "host.latency_cycles": "it is host.latency_ns",
    "host.turnaround_cycles": "it is host.turnaround_ns",
}  # fmt: skip
"""Keys of earlier versions, and why they are gone."""


def check(file: str, key: str, value: object) -> None:
    """Raise ProfileError for a value that a key of KNOWN cannot have."""
    table, _, name = key.partition(".")
    if key in ECONOMIC_KEYS:
        check_economics(file, key, value)
    elif key in TEXTS:
        if not isinstance(value, str) or value not in TEXTS[key]:
            raise _wrong(file, key, " or ".join(map(repr, TEXTS[key])), value)
    elif table == "delays":
        _check_delay(file, key, value)
    elif table == "chip" and name in MODELLED:
        if type(value) is not int or value != MODELLED[name]:
            raise _wrong(file, key, f"{MODELLED[name]} (only that is modelled)", value)
    elif key in RATES:
        if not _is_rate(value):
            raise _wrong(file, key, "a number from 0 to below 1", value)
    else:
        least, most = RANGES[key]
        if type(value) is not int or value < least:
            raise _wrong(file, key, f"an integer >= {least}", value)
        if value > most:
            raise _wrong(file, key, f"at most {most}", value)


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _check_delay(file: str, key: str, value: object) -> None:
    pair = value if isinstance(value, list) else []
    if len(pair) != 2 or not all(type(cycles) is int and cycles >= 0 for cycles in pair):
        raise _wrong(file, key, "[d_func, d_skew], integers >= 0", value)
    if pair[0] > MOST_DELAY:
        raise _wrong(file, key, f"a d_func of at most {MOST_DELAY}", value)
    if pair[1] != 0:
        raise _wrong(file, key, "a d_skew of 0 (only that is modelled)", value)


def _wrong(file: str, key: str, wanted: str, got: object) -> ProfileError:
    return ProfileError(file=file, key=key, wanted=wanted, got=shown(got))
