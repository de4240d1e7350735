"""Residual blocks: bits as NumPy's on the reference machine, and the published cycles."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from machine_kit import whole_chip
from numpy.typing import NDArray
from rack_kit import refused

from chip.errors import TemplateError
from chip.isa.instructions import ACC, LW, Alu, Gather, Read, Write
from chip.isa.issue import Issue
from chip.isa.operands import In, Stream
from chip.kernels.convolve import convolve
from chip.machine.machine import Machine
from chip.machine.resolve import resolve
from chip.ops.convolve import ZERO, cut
from chip.sram import Sram
from compiler.codegen.convolutions.lower import lower
from compiler.codegen.convolutions.memory import ChainMemory, Weights
from compiler.codegen.convolutions.passes import Chain, bottleneck, lay_out
from compiler.codegen.convolutions.reservations import Wish
from compiler.codegen.convolutions.resources import CONVOLUTIONS
from compiler.codegen.core.resources import Kind
from compiler.codegen.core.uses import check, of_issues, together
from rack.commands.validate import main
from rack.machines.profile import load_hardware
from rack.reports.convolutions import CONV3, CONV4, chain_cycles, convolution_rows, used

MACHINE = load_hardware("groqrack")
SPEC = MACHINE.chip
SCALE = 0.7  # of residuals
I8 = NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A chain with data."""

    chain: Chain
    weights: list[Weights]
    image: I8

    @classmethod
    def of(cls, height: int, width: int, channels: int, middle: int, blocks: int) -> Case:
        """Draw weights and an image; scales and biases such that results fill int8."""
        rng = np.random.default_rng(height * channels + blocks)
        ops = bottleneck(height, width, channels, middle, residual=SCALE) * blocks
        weights = []
        for op in ops:
            shape = (op.outputs, op.kernel, op.kernel, op.inputs)
            of_one = 0.02 / np.sqrt(op.inputs * op.kernel**2)
            weights.append(
                Weights(
                    w=rng.integers(-127, 128, shape).astype(np.int8),
                    scale=(of_one * rng.random(op.outputs)).astype(np.float32),
                    bias=(60 * rng.normal(size=op.outputs) - 20).astype(np.float32),
                )
            )
        image = rng.integers(-127, 128, (height, width, channels)).astype(np.int8)
        return cls(chain=lay_out(ops, SPEC), weights=weights, image=image)

    def by_kernel(self) -> list[I8]:
        """Return the last block's three images."""
        x, out = self.image, list[I8]()
        for first in range(0, len(self.weights), 3):
            one, two, three = self.weights[first : first + 3]
            y = convolve(x, one.w, one.scale, one.bias, ZERO)
            z = convolve(y, two.w, two.scale, two.bias, ZERO)
            x, out = convolve(z, three.w, three.scale, three.bias, ZERO, (x, SCALE)), [y, z]
        return [*out, x]

    def by_machine(self) -> tuple[list[I8], list[Issue]]:
        """Return the same of the reference machine, and the instructions."""
        sram, issues = Sram(SPEC.sram_bytes), lower(self.chain)
        memory = ChainMemory(self.chain, sram.bytes)
        memory.fill(self.image, self.weights)
        where = whole_chip(SPEC, memory.valid)
        program = resolve(issues, SPEC, where)
        Machine(program, where, sram.bytes.reshape(-1, 320)).run((0,))
        turn = (len(self.weights) // 3 - 1) % 2
        out = [memory.middle(turn), memory.last(turn), memory.trunk(1 - turn)]
        sram.close()
        return out, issues


@pytest.mark.parametrize(
    ("height", "width", "channels", "middle", "blocks"),
    [
        (8, 8, 64, 32, 2),  # three pixels of a row at once
        (8, 8, 48, 20, 1),  # channels that are no whole superlanes
        (9, 7, 336, 48, 2),  # quarters end within a row
        (40, 40, 32, 16, 1),  # more pixels than accumulators
        (7, 7, 384, 384, 1),  # several tiles of inputs for each tap
        (14, 14, 1024, 256, 2),  # conv4
        (28, 28, 512, 128, 2),  # conv3: two pixels of a row at once
    ],
)
def test_bits_and_cycles(height: int, width: int, channels: int, middle: int, blocks: int) -> None:
    case = Case.of(height, width, channels, middle, blocks)
    got, issues = case.by_machine()
    for ours, wanted in zip(got, case.by_kernel(), strict=True):
        assert len(np.unique(wanted)) > 100
        assert np.array_equal(ours, wanted)
    assert min(issue.cycle for issue in issues) >= 0
    last = max(issue.last_cycle for issue in issues if isinstance(issue.instruction, Write))
    assert last + 1 == case.chain.end


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_kernel_is_what_it_says(kernel: int) -> None:
    """Pixel by pixel: padding is -127, sums are exact, int8 saturates."""
    rng = np.random.default_rng(kernel)
    x = rng.integers(-127, 128, (4, 5, 1100)).astype(np.int8)  # longer than a block of sums
    w = rng.integers(-127, 128, (3, kernel, kernel, 1100)).astype(np.int8)
    scale = np.array([1e-4, 3e-5, 1e-2], np.float32)
    bias = np.array([0.0, -90.5, 3.25], np.float32)
    r = rng.integers(-127, 128, (4, 5, 3)).astype(np.int8)
    got = convolve(x, w, scale, bias, ZERO, (r, 0.3))
    for y in range(4):
        for z in range(5):
            total = np.zeros(3, np.int64)
            for dy in range(kernel):
                for dx in range(kernel):
                    at = y + dy - kernel // 2, z + dx - kernel // 2
                    inside = 0 <= at[0] < 4 and 0 <= at[1] < 5
                    pixel = x[at] if inside else np.full(1100, -127, np.int8)
                    total += w[:, dy, dx].astype(np.int64) @ pixel.astype(np.int64)
            value = total.astype(np.float32) * scale + bias
            value = value + r[y, z].astype(np.float32) * np.float32(0.3)
            assert np.array_equal(got[y, z], np.clip(np.rint(value), -127, 127).astype(np.int8))
    assert set(np.unique(got)) >= {-127, 127}


def test_published_cycles() -> None:
    """ISCA 2020: differences of ResNet-50, -101 and -152; conv4 within 1.2 times, conv3 1.4."""
    conv4, conv3, deeper, deepest = convolution_rows(MACHINE)
    assert round(conv4.published) == 1107  # type: ignore[arg-type]
    assert round(conv3.published) == 1696  # type: ignore[arg-type]
    assert abs(conv4.error_percent) < 20
    assert abs(conv3.error_percent) < 40
    assert abs(deeper.error_percent) < 20
    assert abs(deepest.error_percent) < 20


def test_one_block_more_takes_as_long_wherever_it_stands() -> None:
    size, channels, middle = CONV4
    cycles = [chain_cycles(size, size, channels, middle, n, SPEC) for n in range(1, 6)]
    assert len(set(np.diff(cycles).tolist())) == 1


@pytest.mark.parametrize("form", [CONV3, CONV4])
def test_the_vxm_can_do_it_and_streams_are_in_the_table(form: tuple[int, int, int]) -> None:
    size, channels, middle = form
    issues = lower(lay_out(bottleneck(size, size, channels, middle) * 2, SPEC))
    check("convolutions", [together("blocks", of_issues("blocks", issues, SPEC))])
    held = frozenset[int]().union(
        *(CONVOLUTIONS.of(kind) for kind in (Kind.INWARD, Kind.OUTWARD, Kind.CROSSING))
    )
    for issue in issues:
        assert _streams(issue) <= held


def _streams(issue: Issue) -> set[int]:
    """Return the numbers of the streams that an instruction writes or takes."""
    one, found = issue.instruction, list[Stream]()
    if isinstance(one, (Read, Write, Gather)):
        found.append(one.stream)
    if isinstance(one, Gather):
        found.append(one.map)
    if isinstance(one, (Alu, ACC)):
        found += [tap.stream for tap in one.out]
    if isinstance(one, Alu):
        found += [tap.stream for source in one.sources if isinstance(source, In)
                  for tap in source.taps]  # fmt: skip
    numbers = {stream.number for stream in found}
    if isinstance(one, LW):
        numbers |= set(range(one.stream.number, one.stream.number + one.count))
    return numbers


def test_channels_are_cut_evenly_in_whole_superlanes() -> None:
    assert cut(1024) == [(0, 256), (256, 256), (512, 256), (768, 256)]
    assert cut(330) == [(0, 176), (176, 154)]
    assert cut(20) == [(0, 20)]


@pytest.mark.parametrize("name", ["READ", "LW", "ABC", "ACC", "MUL", "CVT_F32", "CVT_I8"])
def test_each_delay_on_the_way_decides_the_cycles(name: str) -> None:
    delays = tuple((n, func + 4 * (n == name), skew) for n, func, skew in SPEC.delays)
    slower = chain_cycles(8, 8, 64, 32, 1, replace(SPEC, delays=delays))
    assert slower > chain_cycles(8, 8, 64, 32, 1, SPEC)


@pytest.mark.parametrize(
    ("shape", "blocks", "text"),
    [
        ((4, 4, 64, 64), 1, "convolutions: wanted at least 6 pixels a quarter of an image of 4 x 4,"
         " so that borders lie in the next, got 4"),
        ((80, 80, 2048, 64), 1, "convolutions: wanted at most 4096 words of a slice for a quarter "
         "of an image of 80 x 80, got 5607"),
        ((14, 14, 1024, 256), 30, "convolutions: wanted at most 8192 words of a slice for the "
         "weights of 90 convolutions, got 11220"),
        ((0, 4, 64, 64), 1, "convolutions: wanted sizes of 1 or more, got 0, 4, 64, 64"),
        ((14, 14, 64, 64), 0, "convolutions: wanted blocks of three, got 0 convolutions"),
    ],
)  # fmt: skip
def test_chains_that_cannot_be(shape: tuple[int, int, int, int], blocks: int, text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        chain_cycles(*shape, blocks, SPEC)
    assert str(caught.value) == text


def test_a_pass_that_meets_itself() -> None:
    wish = Wish()
    wish.add("a port", [3, 4])
    with pytest.raises(TemplateError, match=r"a pass wants a port twice in cycle 4$"):
        wish.add("a port", [4])


def test_delays_that_a_template_has_no_room_for() -> None:
    delays = tuple((n, 100 if n == "READ" else func, skew) for n, func, skew in SPEC.delays)
    text = "^convolutions: no instructions can be laid out on this chip: a pass wants .* ahead$"
    with pytest.raises(TemplateError, match=text):
        chain_cycles(8, 8, 64, 32, 1, replace(SPEC, delays=delays))


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["conv", "--height", "14", "--width", "14", "--channels", "1024", "--middle", "256",
            "--blocks", "2"]  # fmt: skip
    assert main([*argv, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["cycles"] == [chain_cycles(14, 14, 1024, 256, n, SPEC) for n in (1, 2)]
    assert got["utilisation"] == 2 * used(14, 14, 1024, 256, got["cycles"][1], SPEC)
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"2 blocks of 14 x 14 x 1024 by 256: {got['cycles'][1]} cycles, ")
    argv[-1] = "0"
    assert "wanted blocks of three, got 0" in refused(capsys, 1, main, *argv)
