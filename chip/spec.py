"""What a chip is: the numbers a profile must give. Values live in rack/machines/profiles/*.toml.

Every count is an integer; every duration is in chip cycles (`_cycles`). Nothing here names a
product. Capacity and rates follow from the floor plan, so a profile cannot contradict itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

VECTOR_BYTES = 320
RUN = 16  # neighbouring vectors in one hemisphere: what one plane loads in a cycle
"""Bytes of one SRAM word, one stream value and one C2C packet's payload."""

INT4_GROUPS = (VECTOR_BYTES, 160, 64, 32)
"""Rows of K of an output column that may share a scale of int4 weights: a tile, or a part of it."""

MODELLED = {
    "lanes": VECTOR_BYTES, "superlanes": 20, "hemispheres": 2, "slices": 88, "banks": 2,
    "streams": 64, "mxm_planes": 4, "mxm_rows": 320, "mxm_columns": 320,
    "mxm_weight_streams": 16, "mxm_fp16_slowdown": 4, "vxm_alus": 16,
}  # fmt: skip
"""The floor plan that instruction templates are laid on; a profile with another is refused."""


USES = ("work_slices", "feed_slices")
"""Fields of `ChipSpec` that are no facts of a chip: a compiler chooses them for a layout."""


def pad_vector(n_bytes: int) -> int:
    """Round `n_bytes` up to whole 320-byte vectors."""
    return -(-n_bytes // VECTOR_BYTES) * VECTOR_BYTES


def vectors(n_bytes: int) -> int:
    """Count the 320-byte vectors that hold `n_bytes`."""
    return -(-n_bytes // VECTOR_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipSpec:
    """One chip: clock, memory, streams, units and the latency of each.

    Raises ValueError when a number is not positive or the floor plan does not add up.
    """

    clock_hz: int
    lanes: int  # lanes of a vector, one byte each
    superlanes: int
    sram_bytes: int
    hemispheres: int
    slices: int  # MEM slices, both hemispheres together
    banks: int  # banks per slice
    streams: int  # stream registers' width: both directions together, one vector each per cycle
    mxm_planes: int
    mxm_rows: int  # K of one plane, int8
    mxm_columns: int  # N of one plane
    mxm_weight_streams: int  # vectors loaded into one plane per cycle
    mxm_fp16_slowdown: int  # fp16 throughput is 1/this of int8
    mxm_int4_columns: int  # that the weight path makes of a vector of int4 weights: 1 or 2
    vxm_alus: int  # per lane
    forward_cycles: int  # last byte in to first byte out, for a vector passed on to another chip
    slices_per_hop: int  # MEM slices between two stream registers
    mxm_activation_slots: int  # rows that a plane's activation buffer holds
    mxm_accumulator_rows: int  # rows that a plane's accumulators hold
    delays: tuple[tuple[str, int, int], ...]  # (instruction, d_func, d_skew), sorted; chip/isa
    # how a compiler uses the MEM slices beside the VXM, in each hemisphere (chip/sram.py)
    work_slices: int = 1  # of buffers, scales and norms
    feed_slices: int = 0  # of rows that wait for the MXM; 0: they are among the buffers

    def __post_init__(self) -> None:
        delays = tuple(sorted((str(name), func, skew) for name, func, skew in self.delays))
        object.__setattr__(self, "delays", delays)
        for field in fields(self):
            if field.name == "delays":
                continue
            value, least = getattr(self, field.name), field.name != "feed_slices"
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                wanted = "a positive integer" if least else "0 or more"
                raise ValueError(f"chip.{field.name}: wanted {wanted}, got {value!r}")
        self._check_delays()
        if self.lanes != VECTOR_BYTES:
            raise ValueError(f"chip.lanes: wanted {VECTOR_BYTES}, got {self.lanes}")
        if self.lanes % self.superlanes:
            raise ValueError(f"chip.superlanes: {self.superlanes} does not divide {self.lanes}")
        per_bank = self.slices * self.banks * VECTOR_BYTES
        if self.slices % self.hemispheres or self.sram_bytes % per_bank:
            raise ValueError(
                f"chip.sram_bytes: {self.sram_bytes} is not a whole number of words in "
                f"{self.slices} slices x {self.banks} banks over {self.hemispheres} hemispheres"
            )
        if self.mxm_planes * self.mxm_weight_streams > self.streams:
            raise ValueError(
                f"chip.mxm_weight_streams: {self.mxm_planes} planes x {self.mxm_weight_streams} "
                f"exceed {self.streams} streams"
            )

    def __hash__(self) -> int:
        """Hash a few fields: costs are looked up by spec for every operation."""
        return hash((self.clock_hz, self.sram_bytes, self.work_slices, self.feed_slices))

    def _check_delays(self) -> None:
        for name, func, skew in self.delays:
            if not all(type(cycles) is int and cycles >= 0 for cycles in (func, skew)):
                raise ValueError(
                    f"chip.delays.{name}: wanted [d_func, d_skew], integers >= 0, "
                    f"got {[func, skew]!r}"
                )

    @property
    def near_slices(self) -> int:
        """Slices of a hemisphere, from the VXM outwards, that hold no weights and no cache."""
        return self.work_slices + self.feed_slices

    @property
    def words_per_bank(self) -> int:
        """Vectors in one bank of one slice."""
        return self.sram_bytes // (self.slices * self.banks * VECTOR_BYTES)

    @property
    def stream_bytes_per_cycle(self) -> int:
        """Bytes per cycle that can reach the functional units: the stream roofline."""
        return self.streams * VECTOR_BYTES

    @property
    def weight_load_cycles(self) -> int:
        """Cycles to load one int8 plane at full stream rate."""
        return -(-self.mxm_columns // self.mxm_weight_streams)
