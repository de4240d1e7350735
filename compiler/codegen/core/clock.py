"""Cycles between an instruction's issue and what comes of it, on one chip."""

from __future__ import annotations

from chip.floorplan import Role, alu, hops, mem, mxm, sxm
from chip.isa.issue import delays
from chip.spec import ChipSpec


class Clock:
    """A chip's result delays (`of`, by mnemonic) and the hops between its units."""

    def __init__(self, spec: ChipSpec) -> None:
        self.spec = spec
        self.of = {name: delay.d_func for name, delay in delays(spec).items()}
        self.to_sxm = hops(alu(0), sxm(0, 0), spec)
        self.to_mxm = hops(alu(0), mxm(0, Role.FEED), spec)
        self.near = hops(alu(0), mem(0, 0), spec)
        self.far = hops(alu(0), mem(0, spec.slices // spec.hemispheres - 1), spec)
        self.fetch = self.of["READ"] + self.near  # from a work slice's port to the VXM
        # from an activation's Read through the VXM to its arrival at the planes
        self.feed = self.fetch + self.of["COPY"] + self.to_mxm

    @property
    def after_outward(self) -> int:
        """Cycles after which a value may arrive at the VXM, behind one that left it."""
        return self.of["READ"] + 2 * self.far + 1

    @property
    def after_inward(self) -> int:
        """Cycles after which a value may leave the VXM, behind one that arrived; or before."""
        return 1 - self.of["READ"] - 2 * self.near
