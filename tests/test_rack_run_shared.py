"""Repeated weights: chips of a rank map one image, and nothing but memory tells the difference."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chip.errors import SramError
from chip.sram import Sram
from compiler.model.weights import WeightsRef
from compiler.pipeline import CompiledModel
from rack.errors import ConfigError
from rack.run.config import RunConfig
from rack.run.host_memory import BASE_BYTES, ONE_OF_MANY_BYTES, fit_to_memory
from rack.run.job import ChipJob, build_chip, chip_job, load_weights, reserve_tensors
from rack.run.session import Session, prepare
from rack.run.shared import SharedImages, shares, sram_in_use
from rack.text.sampler import SamplingParams

GREEDY = SamplingParams(max_tokens=4, ignore_eos=True)


def config(layout: str = "3x2+1", transport: str = "local") -> RunConfig:
    return RunConfig(
        model="tiny", weights="repeat", layout=layout, transport=transport, max_model_len=32,
        prefill_chunk=4,
    )  # fmt: skip


def made(layout: str = "3x2+1") -> tuple[CompiledModel, WeightsRef]:
    prepared = prepare(config(layout))
    return prepared.compiled, prepared.model.weights_ref


def constants(job: ChipJob) -> list[bytes]:
    sram = Sram(job.spec.sram_bytes)
    reserve_tensors(job, sram)
    load_weights(job, sram, job.weights.open())
    return [bytes(sram.memory(*region)) for region in job.constant_regions]


def test_chips_of_a_rank_have_one_image() -> None:
    compiled, weights = made()
    shared = SharedImages(weights)
    jobs = [shared.of(chip_job(compiled, chip, weights)) for chip in range(7)]
    images = [job.image for job in jobs]
    assert images == [*images[:2] * 3, images[6]]
    assert len(set(images)) == 3
    for job in jobs:
        chip = build_chip(job, lambda *_: None)
        got = [bytes(chip.sram.memory(*region)) for region in job.constant_regions]
        assert got == constants(job)
        chip.sram.close()
    shared.close()
    assert not any(os.path.exists(image or "") for image in images)
    shared.close()  # once is enough


def test_what_a_chip_writes_is_its_own() -> None:
    compiled, weights = made()
    shared = SharedImages(weights)
    one, other = (
        build_chip(shared.of(chip_job(compiled, chip, weights)), lambda *_: None).sram
        for chip in (0, 2)
    )
    shared.close()
    one.bytes[:] = 7
    assert other.bytes[:640].any()
    assert not (other.bytes == 7).all()
    assert (one.bytes == 7).all()


@pytest.mark.parametrize("transport", ["local", "process"])
def test_a_run_is_that_of_chips_with_images_of_their_own(transport: str) -> None:
    prepared = prepare(config("3x2+1", transport))
    with Session(prepared) as session:
        got = session.engine.generate([1, 2, 3, 4, 5], GREEDY).run()
    alone = prepare(config("1x1"))
    with Session(alone) as session:
        want = session.engine.generate([1, 2, 3, 4, 5], GREEDY).run()
    assert (got.data_hash, got.token_ids) == (want.data_hash, want.token_ids)
    ordinary = prepare(replace(config("1x1"), weights=None))
    with Session(ordinary) as session:
        assert session.engine.generate([1, 2, 3, 4, 5], GREEDY).run().data_hash != got.data_hash


def test_memory_counts_an_image_once() -> None:
    compiled, weights = made()
    each = [memory.constant_bytes for memory in compiled.memories]
    own = sum(memory.kv_bytes + memory.buffer_bytes for memory in compiled.memories)
    for transport in ("local", "process"):
        got = sram_in_use(compiled, weights, transport, stored=False)
        assert got == sum(each[i] for i in (0, 1, 6)) + own
    for transport, stored in (("ray", False), ("local", True)):
        assert sram_in_use(compiled, weights, transport, stored=stored) == sum(each) + own
    assert not shares(replace(weights, repeat=False), "local", stored=False)


def test_processes_that_share_count_as_measured() -> None:
    prepared = prepare(config(transport="process"))
    images = sram_in_use(prepared.compiled, prepared.model.weights_ref, "process", stored=False)
    needed = images + 7 * ONE_OF_MANY_BYTES + BASE_BYTES
    assert fit_to_memory(prepared, asked_for=True, free=lambda: needed) == (prepared, None)
    with pytest.raises(ConfigError, match=r"executor: fast needs 0\.8 GB of memory here"):
        fit_to_memory(prepared, asked_for=True, free=lambda: needed - 1)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with pytest.raises(SramError) as caught:
        Sram(640, str(path))
    assert str(caught.value) == (
        f"{path}: wanted an image of 640 bytes, got No such file or directory"
    )
    path.write_bytes(bytes(320))
    with pytest.raises(SramError) as caught:
        Sram(640, str(path))
    assert str(caught.value) == f"{path}: wanted an image of 640 bytes, got 320"
    path.write_bytes(bytes(range(64)) * 10)
    sram = Sram(640, str(path))
    sram.bytes[0] = 99
    assert path.read_bytes() == bytes(range(64)) * 10
    np.testing.assert_array_equal(sram.bytes[1:64], np.arange(1, 64))
