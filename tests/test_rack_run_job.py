"""Jobs: a chip's share of a compiled model, and loading it to the addresses the compiler chose."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_ops import args, template
from schedules import WEIGHTS, compiled

from chip.errors import ProgramError, ScheduleViolation, SramError
from chip.kernels.packed import pack_weights
from chip.kernels.quant import tile_weights
from chip.ops.opcodes import shape_of
from chip.ops.program import MOVES
from chip.sram import Sram
from compiler.codegen.cost import cost_model
from rack.run.job import (
    ChipJob,
    build_chip,
    chip_job,
    chip_links,
    links_of,
    load_weights,
    programs_of,
    reserve_tensors,
)
from rack.run.stored import Images

LAYOUTS = ["1x1", "2x2+1", "1x3+2"]


def loaded(job: ChipJob) -> Sram:
    sram = Sram(job.spec.sram_bytes)
    reserve_tensors(job, sram)
    load_weights(job, sram, job.weights.open())
    return sram


def nothing(*_: object, **__: object) -> None:
    """Send nothing."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_job_is_small_and_holds_one_chip(layout: str) -> None:
    model = compiled(layout)
    for chip in range(model.layout.chips):
        job = chip_job(model, chip, WEIGHTS)
        assert (job.index, job.host, job.dtype) == (chip, model.layout.chips, "int8")
        assert [program.step for program in job.programs] == list(model.steps)
        assert all(chip in (link.src, link.dst) for link in job.links)
        memory = model.memories[chip]
        assert job.used_bytes == memory.sram_bytes - memory.free_bytes
        constants = [load.tensor.name for load in job.loads]
        kept = ("weight", "scale", "norm")
        assert constants == [tensor.name for tensor in memory.tensors if tensor.kind in kept]
        again = pickle.dumps(job)
        assert len(again) < 400_000
        assert pickle.loads(again) == job


def test_links_and_programs_are_those_at_the_node() -> None:
    model = compiled("2x2+1")
    host = model.layout.chips
    assert all(link.is_host for link in links_of(model, host))
    both = links_of(model, 0)
    assert {link.src for link in both} > {0}
    assert set(chip_links(both)) == {link.id for link in both}
    assert chip_links(both)[both[0].id].slot_cycles == both[0].slot_cycles
    assert {program.chip for program in programs_of(model, 1)} == {1}


@pytest.mark.parametrize("dtype", ["int8", "int4", "fp16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_column_of_every_weight_is_on_some_chip(layout: str, dtype: str) -> None:
    model, source = compiled(layout, dtype=dtype), WEIGHTS.open()
    name = "model.layers.1.mlp.down_proj.weight"
    columns: dict[int, np.ndarray] = {}
    for chip in range(model.layout.chips):
        job = chip_job(model, chip, WEIGHTS)
        sram = loaded(job)
        for load in job.loads:
            if load.tensor.kind == "norm":
                got = sram.tensor(load.tensor.name).view(np.float32)
                want = source.vector(load.vectors[0][0].tensor)
                assert (got[: len(want)] == want).all()
            pieces = [piece for weight in load.weights for piece in weight.pieces]
            if [piece.tensor for piece in pieces] != [name]:
                continue
            (piece,) = pieces
            if dtype == "int8":
                values, scales = source.int8_rows(name, piece.start, piece.stop)
                at = sram.tensor(f"{load.tensor.name}.scale").view(np.float32)
                assert (at[: len(scales)] == scales).all()
            elif dtype == "int4":
                values, scales = source.int4_rows(name, piece.start, piece.stop, 320)
                at = sram.tensor(f"{load.tensor.name}.scale").view(np.float32)
                assert (at.reshape(len(scales), -1)[:, : scales.shape[1]] == scales).all()
            else:
                values = source.f32_rows(name, piece.start, piece.stop).astype(np.float16)
            tiled = (pack_weights if dtype == "int4" else tile_weights)(values)
            tiled = tiled.view(np.uint8).ravel()
            assert (sram.tensor(load.tensor.name)[: tiled.size] == tiled).all()
            columns |= dict(zip(range(piece.start, piece.stop), values, strict=True))
        sram.close()
    assert sorted(columns) == list(range(model.config.hidden_size))


def test_overlapping_tensors_are_refused() -> None:
    job = chip_job(compiled(), 0, WEIGHTS)
    first, second, *_ = job.loads
    moved = replace(second, tensor=replace(second.tensor, address=first.tensor.address))
    with pytest.raises(SramError, match="overlaps"):
        build_chip(replace(job, loads=(first, moved)), nothing)


def test_an_image_is_what_loading_gives(tmp_path: Path) -> None:
    model = compiled("1x2")
    job = chip_job(model, 1, WEIGHTS)
    sram, regions = loaded(job), model.memories[1].constant_regions
    image = b"".join(sram.memory(*region) for region in regions)
    (tmp_path / "chip_0001.bin").write_bytes(image)
    images = Images(folder=tmp_path, digests={"chip_0001.bin": hashlib.sha256(image).hexdigest()})
    again = Sram(job.spec.sram_bytes)
    images.read(1, [again.memory(*region) for region in regions])
    for at, size in regions:
        assert bytes(again.memory(at, size + 320)) == bytes(sram.memory(at, size)) + bytes(320)
    for memory in (sram, again):
        memory.close()


def test_a_chip_is_built_with_all_its_programs() -> None:
    job = chip_job(compiled("1x2"), 1, WEIGHTS)
    chip = build_chip(job, nothing, "numpy")
    assert chip.index == 1
    assert set(chip.links) == {link.id for link in job.links}
    assert chip.waiting_for() is None
    with pytest.raises(ValueError, match="unknown implementation 'abacus'"):
        build_chip(job, nothing, "abacus")
    chip.sram.close()


def test_a_chip_is_told_what_its_operations_cost() -> None:
    model = compiled("1x2+1")
    job = chip_job(model, 0, WEIGHTS)
    wanted = {
        shape_of(operation.op): template(operation.opcode, args(operation), job.spec).cycles
        for program in job.programs
        for operation in program.operations
        if operation.opcode not in MOVES
    }
    assert {about: cost.cycles for about, cost in job.costs.known.items()} == wanted


def test_a_chip_that_differs_names_what_the_costs_are_not_for() -> None:
    job = chip_job(compiled("1x1"), 0, WEIGHTS)
    delays = tuple(d if d[0] != "MUL" else ("MUL", d[1] + 8, d[2]) for d in job.spec.delays)
    with pytest.raises(ProgramError) as caught:
        build_chip(replace(job, spec=replace(job.spec, delays=delays)), lambda *_: None)
    assert str(caught.value) == (
        f"costs of operations: they are for a chip with delays {job.spec.delays}, this one has "
        f"{delays}"
    )
    other = replace(job.spec, delays=delays)
    own = replace(job, spec=other, costs=cost_model(other))
    with pytest.raises(ScheduleViolation, match="end is not the chip's own"):
        build_chip(own, lambda *_: None)


def test_a_chip_is_not_told_the_cost_of_another_operation() -> None:
    job = chip_job(compiled("1x1"), 0, WEIGHTS)
    none = replace(job.costs, known={})
    with pytest.raises(ProgramError) as caught:
        build_chip(replace(job, costs=none), lambda *_: None)
    assert str(caught.value).startswith("matmul of rows ")
    assert str(caught.value).endswith(": wanted its cost from the compiler, got none")
