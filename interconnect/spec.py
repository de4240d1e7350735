"""What a link is: the numbers a profile must give, and the slot that follows from them.

Every packet carries one whole 320-byte vector. So two durations in chip cycles describe a link: its
slot (one packet's time on the wire) and its latency. Rates stay
exact (integers and Fraction); no float enters emulated time. Nothing here names a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from interconnect.errors import SpecError

_MINIMUM = {"overhead_bytes": 0}  # everything else is at least 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """One direction of one cable.

    All fields are integers, so a spec goes into msgpack, JSON or a hash as it stands. Raises
    SpecError when one is out of range; a latency of zero cycles is refused because a vector
    must never arrive in the cycle it leaves.
    """

    lanes: int
    line_rate_bps: int  # bits per second per lane, encoding included
    encoding_payload: int  # e.g. 64 of
    encoding_total: int  # 66
    rate_divisor: int = 1  # the rate is an even share, one of this many (keeps it exact)
    vector_bytes: int = 320
    overhead_bytes: int = 8  # per vector
    latency_cycles: int  # end of the slot to arrival

    def __post_init__(self) -> None:
        for field in self.__slots__:
            value, least = getattr(self, field), _MINIMUM.get(field, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(field=field, wanted=f"an integer >= {least}", got=value)
        if self.encoding_payload > self.encoding_total:
            raise SpecError(
                field="encoding_payload",
                wanted=f"at most encoding_total ({self.encoding_total})",
                got=self.encoding_payload,
            )

    @classmethod
    def from_payload_rate(
        cls,
        payload_bps: int | Fraction,
        *,
        latency_cycles: int,
        overhead_bytes: int = 8,
        vector_bytes: int = 320,
    ) -> LinkSpec:
        """Describe a link known only by its payload rate, in bits per second, kept exactly."""
        rate = Fraction(payload_bps)
        if rate <= 0:
            raise SpecError(field="payload_bps", wanted="more than 0", got=payload_bps)
        return cls(
            lanes=1,
            line_rate_bps=rate.numerator,
            encoding_payload=1,
            encoding_total=1,
            rate_divisor=rate.denominator,
            vector_bytes=vector_bytes,
            overhead_bytes=overhead_bytes,
            latency_cycles=latency_cycles,
        )

    @property
    def payload_bps(self) -> Fraction:
        """Bits per second that packets have, after the line encoding."""
        return Fraction(
            self.lanes * self.line_rate_bps * self.encoding_payload,
            self.encoding_total * self.rate_divisor,
        )

    @property
    def packet_bytes(self) -> int:
        """Bytes on the wire for one vector."""
        return self.vector_bytes + self.overhead_bytes

    def slot_cycles(self, clock_hz: int) -> int:
        """Return the cycles one packet holds the link, at a chip clock of `clock_hz`."""
        if clock_hz < 1:
            raise SpecError(field="clock_hz", wanted="an integer >= 1", got=clock_hz)
        cycles = self.packet_bytes * 8 * clock_hz / self.payload_bps
        return -(-cycles.numerator // cycles.denominator)
