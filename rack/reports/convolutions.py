"""Blocks of residual networks: cycles of one more in a chain, beside the published differences.

The published rates are of whole networks, of which each has more blocks of one kind than the one
before: ResNet-101 has 17 more of conv4 than ResNet-50, ResNet-152 has 13 more of conv4 and 4 more
of conv3 than ResNet-101. What these take is the difference of the times of an image. It has no part
of what begins and ends a network, and neither has ours: a chain with those blocks, less one
without. A chip has all weights of a chain in its SRAM, and one image at a time.
"""

from __future__ import annotations

from chip.spec import ChipSpec
from compiler.codegen.convolutions.passes import bottleneck, lay_out
from compiler.codegen.core.template import laid_out
from rack.machines.hardware import Hardware
from rack.reports.accuracy import Row

RATES = {50: 20_400, 101: 14_300, 152: 10_700}  # images/s, batch 1: ISCA 2020, IV.F and V
CONV3, CONV4 = (28, 512, 128), (14, 1024, 256)  # pixels a side, channels, channels between


def chain_cycles(
    height: int, width: int, channels: int, middle: int, blocks: int, spec: ChipSpec
) -> int:  # fmt: skip
    """Return the cycles of a chain of blocks, for one image. Raises TemplateError."""
    with laid_out("convolutions"):
        return lay_out(bottleneck(height, width, channels, middle) * blocks, spec).end


def more_cycles(form: tuple[int, int, int], blocks: int, spec: ChipSpec) -> int:
    """Return the cycles that so many more blocks take behind one."""
    size, channels, middle = form
    long, short = (
        chain_cycles(size, size, channels, middle, count, spec) for count in (1 + blocks, 1)
    )
    return long - short


def used(height: int, width: int, channels: int, middle: int, cycles: int, spec: ChipSpec) -> float:
    """Return the part of the planes' multiply-adds in these cycles that a block needs."""
    needed = sum(op.multiply_adds for op in bottleneck(height, width, channels, middle))
    return needed / (spec.mxm_planes * spec.mxm_rows * spec.mxm_columns * cycles)


def convolution_rows(hardware: Hardware) -> list[Row]:
    """Blocks of ResNets, and the differences between whole networks."""
    chip = hardware.chip
    conv4, conv4_less, conv3 = (
        more_cycles(form, blocks, chip) for form, blocks in ((CONV4, 17), (CONV4, 13), (CONV3, 4))
    )
    seconds = {depth: 1 / rate for depth, rate in RATES.items()}
    deeper, deepest = seconds[101] - seconds[50], seconds[152] - seconds[101]
    block4 = deeper * chip.clock_hz / 17
    block3 = (deepest * chip.clock_hz - 13 * block4) / 4
    more = (conv4_less + conv3) / chip.clock_hz
    source = "ISCA 2020, IV.F and V: 20.4k, 14.3k and 10.7k images/s"
    figures = (
        ("ResNet conv4 block, 14 x 14 x 1,024 by 256, one more", "cycles", block4, conv4 / 17),
        ("ResNet conv3 block, 28 x 28 x 512 by 128, one more", "cycles", block3, conv3 / 4),
        ("ResNet-101 less ResNet-50, 17 conv4 blocks", "us", deeper * 1e6,
         conv4 / chip.clock_hz * 1e6),
        ("ResNet-152 less ResNet-101, 13 conv4 and 4 conv3 blocks", "us", deepest * 1e6,
         more * 1e6),
    )  # fmt: skip
    return [
        Row(
            part="network", figure=f"{figure}, int8", unit=unit, published=wanted, grade="D",
            source=source, ours=ours, constants=("chip.*", "delays.*"),
        )
        for figure, unit, wanted, ours in figures
    ]  # fmt: skip
