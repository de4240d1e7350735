"""The published LSTM cell: cycles as measured, and the right cell on the reference machine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from machine_kit import whole_chip

from chip.errors import TemplateError
from chip.kernels import vmath
from chip.kernels.quant import tile_weights
from chip.machine.machine import Machine
from chip.machine.resolve import resolve
from chip.sram import Sram
from compiler.codegen.core.template import laid_out
from compiler.codegen.lstm import columns_of, lay_out
from compiler.codegen.lstm_cell import cell, cell_cycles, lower_cell
from compiler.errors import CapacityError, CompilerError
from rack.commands.validate import main
from rack.machines.profile import load_hardware

SPEC = load_hardware("groqrack").chip
PUBLISHED = {1: 670, 3: 718, 6: 790, 8: 838, 32: 1413}  # docs/hardware.md, grade A


def test_published_cycles() -> None:
    got = {batch: cell_cycles(512, batch, SPEC) for batch in PUBLISHED}
    for batch, wanted in PUBLISHED.items():
        assert abs(got[batch] / wanted - 1) <= 0.01, (batch, got[batch], wanted)
    for batch in (3, 6, 8, 32):
        assert got[batch] - got[1] == 24 * (batch - 1)


@pytest.mark.parametrize("hidden", [64, 320, 640, 1024])
def test_other_sizes_follow_from_passes_and_vector_work(hidden: int) -> None:
    """A row more costs a cycle in each pass of a plane, and 8 for each 320 units."""
    tiles = -(-hidden // 320)
    one, four = (cell_cycles(hidden, batch, SPEC) for batch in (1, 4))
    assert four - one == 3 * (2 * tiles * tiles + 8 * tiles)


def test_more_sequences_than_accumulators_run_in_rounds() -> None:
    assert cell_cycles(512, 165, SPEC) == cell_cycles(512, 160, SPEC) + cell_cycles(512, 5, SPEC)
    assert cell_cycles(512, 160 * 10**12, SPEC) == 10**12 * cell_cycles(512, 160, SPEC)
    for hidden, batch in ((512, 0), (512, -1), (512, -160), (0, 1), (-1, 1)):
        with pytest.raises(CompilerError, match=f"of 1 or more, got {hidden}, {batch}"):
            cell_cycles(hidden, batch, SPEC)


def filled(a: dict[str, Any], w: Any, x: Any, h: Any, c: Any) -> Sram:
    """A memory with the cell's weights [4, H, 2H], inputs [B, H] and state [B, H] in place."""
    hidden, batch = a.hidden, a.rows
    tiles, sram = -(-hidden // 320), Sram(SPEC.sram_bytes)
    rows = np.zeros((batch, 2, tiles * 320), np.int8)
    rows[:, 0, :hidden], rows[:, 1, :hidden] = x, h
    state = np.zeros((batch, tiles * 320), np.float32)
    state[:, :hidden] = c
    for at, values in ((a.x, rows), (a.c, state)):
        sram.bytes[at : at + values.nbytes] = values.view(np.uint8).ravel()
    for blocks in columns_of(hidden, 2 * tiles):
        for gate, block in enumerate(blocks):
            n = min(block.width, hidden - block.first)
            part = np.zeros((block.width, 2, tiles * 320), np.int8)
            part[:n, :, :hidden] = w[gate, block.first :][:n].reshape(n, 2, hidden)
            flat = tile_weights(part.reshape(block.width, -1)).view(np.uint8)
            sram.bytes[block.vector * 320 :][: flat.size] = flat
    return sram


@pytest.mark.parametrize(("hidden", "batch"), [(330, 2), (100, 3), (512, 8)])
def test_the_cell_on_the_reference_machine(hidden: int, batch: int) -> None:
    rng = np.random.default_rng(hidden)
    w = rng.integers(-127, 128, (4, hidden, 2 * hidden)).astype(np.int8)
    x, h = rng.integers(-127, 128, (2, batch, hidden)).astype(np.int8)
    c = rng.standard_normal((batch, hidden)).astype(np.float32)
    a = cell(hidden, batch, SPEC)
    sram = filled(a, w, x, h, c)
    memory = whole_chip(SPEC)
    program = resolve(lower_cell(a, SPEC), SPEC, memory)
    Machine(program, memory, sram.bytes.reshape(-1, 320)).run(np.zeros(batch, np.int64))

    sums = np.einsum("bk,gnk->gbn", np.concatenate([x, h], 1).astype(int), w.astype(int))
    acc, scale, half = sums.astype(np.float32), np.float32(a.scale), np.float32(0.5)
    gate, forget, output = (vmath.tanh(acc[j] * (scale * half)) * half + half for j in (0, 1, 3))
    state = gate * vmath.tanh(acc[2] * scale) + forget * c
    out = np.rint(vmath.tanh(state) * output * np.float32(127)).astype(np.int8)
    tiles = -(-hidden // 320)
    got = sram.bytes[a.c :][: batch * tiles * 1280].view(np.float32).reshape(batch, -1)
    assert np.array_equal(got[:, :hidden], state)
    got_h = sram.bytes[a.h :][: batch * tiles * 320].view(np.int8).reshape(batch, -1)
    assert np.array_equal(got_h[:, :hidden], out)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lstm", "--hidden", "512", "--batch", "1,8", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got == {"cycles": [cell_cycles(512, 1, SPEC), cell_cycles(512, 8, SPEC)]}
    assert main(["lstm", "--hidden", "64", "--batch", "2"]) == 0
    assert capsys.readouterr().out.startswith("LSTM-64, batch 2: ")
    assert main(["lstm", "--hidden", "64", "--batch", "1,x"]) == 1
    assert "batch: wanted whole numbers" in capsys.readouterr().err


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(CompilerError, match="wanted hidden and batch of 1 or more, got 0, 1"):
        cell(0, 1, SPEC)
    with pytest.raises(CompilerError, match="wanted batch x 2 column groups of at most 320"):
        cell(512, 161, SPEC)
    with pytest.raises(CapacityError):
        cell(6000, 1, SPEC)


@pytest.mark.parametrize(("hidden", "loads"), [(64, [4]), (320, [20]), (512, [20, 12])])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_pass_is_way_load_rows_and_array(hidden: int, loads: list[int], rows: int) -> None:
    """Weights leave memory when the last product of the pass before leaves the array."""
    found = lay_out(cell(hidden, rows, SPEC), SPEC)
    assert [(one.cycles, one.interval) for one in found.loads] == [
        (load, 12 + load + rows + 24) for load in loads
    ]
    for number, load in enumerate(found.loads):
        last = found.multiplied(number, 0, rows - 1)
        assert load.start + load.interval == last + 12
    mean = sum(load + 36 for load in loads) / len(loads)
    assert hidden != 512 or mean == 52  # docs/hardware.md: a pass of B rows fits 52 + B


def test_the_tail_is_two_steps_that_do_not_overlap() -> None:
    """Ports decide the rows' pace: the state is 2 beats in and out, then in again, the output 1."""
    rows = 3
    found = lay_out(cell(512, rows, SPEC), SPEC)
    first, second = found.drains[:2], found.drains[2:]
    assert [one.interval for one in found.drains] == [5, 5, 3, 3]
    assert first[1].start - first[0].start == 5 * rows
    over = first[1].start + 5 * (rows - 1) + first[1].block.end
    assert found.again[0].drain == over + 20
    assert second[0].start + min(node.cycle for node in second[0].block.nodes) > over


@pytest.mark.parametrize("name", ["READ", "LW", "IW", "ABC", "ACC", "PERMUTE", "TANH", "NOTIFY"])
def test_each_delay_on_the_way_decides_the_cycles(name: str) -> None:
    delays = tuple((n, func + 4 * (n == name), skew) for n, func, skew in SPEC.delays)
    slower = cell_cycles(512, 2, replace(SPEC, delays=delays)) - cell_cycles(512, 2, SPEC)
    assert slower >= {"LW": 32, "IW": 32, "ABC": 32}.get(name, 4)  # eight passes


def test_too_few_alus() -> None:
    text = "^no interval of up to 16 cycles leaves enough ALUs$"
    with pytest.raises(TemplateError, match=text):
        cell_cycles(512, 1, replace(SPEC, vxm_alus=1))


def test_what_a_template_counts_on_is_named() -> None:
    text = r"^lstm: no instructions can be laid out on this chip: no ALU is free$"
    with pytest.raises(TemplateError, match=text), laid_out("lstm"):
        raise OverflowError("no ALU is free")
