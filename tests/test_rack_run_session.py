"""Sessions: from a configuration to a rack, and what a user must be told."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from compiler.errors import CapacityError, CompilerError, LayoutError, ModelError
from compiler.model.config import ModelConfig
from compiler.model.layer import EMBEDDING, LM_HEAD
from compiler.pipeline import Options
from compiler.place.layout import Layout
from rack.machines.hardware import Hardware
from rack.run.config import RunConfig
from rack.run.local import LocalRack
from rack.run.session import (
    KNOWN_ERRORS,
    Prepared,
    Session,
    open_rack,
    prepare,
    shared_by_racks,
)
from rack.run.stored import Images
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams


def prepared(**options: Any) -> Prepared:
    values = {"model": "tiny", "layout": "1x1", "transport": "local", **options}
    return prepare(RunConfig(**values))


def test_options_reach_the_compiler() -> None:
    compiled = prepared(dtype="fp16", max_model_len=48, prefill_chunk=8, returns="topk:3").compiled
    assert (compiled.dtype, compiled.max_model_len, compiled.prefill_chunk) == ("fp16", 48, 8)
    assert compiled.top_k == 3
    assert compiled.target_name == "lesson"
    assert prepared(hardware="groqrack").hardware.name == "groqrack"


def test_auto_chooses_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(
        config: ModelConfig, hardware: Hardware, options: Options, progress: object, *, spares: int
    ) -> Layout:
        asked.append((config.name, hardware.name, options.max_model_len, spares))
        return Layout(stages=1, group=2)

    monkeypatch.setattr("rack.run.session.choose_layout", choose)
    config = RunConfig(model="tiny", max_model_len=32, prefill_chunk=4, spares=3)
    ready = prepare(config, kinds="decode")
    assert asked == [("tiny", "lesson", 32, 3)]
    assert str(ready.compiled.layout) == "1x2"
    assert all(step.kind.decode for step in ready.compiled.steps.values())


def test_notices_say_what_is_not_real(stories260k: Path) -> None:
    notices = prepared().notices
    assert notices[0] == "SYNTHETIC weights of tiny (seed 0): text is noise"
    assert notices[1].startswith("no tokenizer.json: a byte tokenizer is used")
    timing = prepared(executor="timing").notices
    assert timing[0] == "TIMING executor: cycles are exact, tokens are drawn at random"
    real = prepared(model=str(stories260k)).notices
    assert real == ["no chat template: chats are given to the model as plain `role: content` lines"]


def test_the_seed_is_that_of_the_weights() -> None:
    assert prepared(seed=5).model.weights_ref.seed == 5


def test_weights_are_opened_before_a_chip_starts(tmp_path: Path, stories260k: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((stories260k / name).read_bytes())
    with pytest.raises(CompilerError, match=r"wanted model\.safetensors or"):
        prepared(model=str(tmp_path))
    ready = prepared(model=str(tmp_path), executor="timing")  # has no use for them
    assert isinstance(open_rack(ready), TimingRack)


def test_weights_are_checked_before_anything_is_compiled(
    tmp_path: Path, stories260k: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rack.run.session.compile_model", None)
    folder = tmp_path / "model"
    shutil.copytree(stories260k, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 173}))
    with pytest.raises(ModelError, match=r"gate_proj.weight: wanted shape \[173, 64\], got \[172"):
        prepared(model=str(folder))


def test_what_the_files_leave_open_is_said(tmp_path: Path, stories260k: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories260k, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, LM_HEAD: weights[EMBEDDING].copy()}, folder / "model.safetensors")
    first, second, third = prepared(model=str(folder), dtype="fp16").notices
    assert first.endswith("transformers' defaults are used: rope_theta 10000.0")
    assert "lm_head.weight is not read: tie_word_embeddings says" in second
    assert third.startswith("no chat template")
    planned = prepare(RunConfig(model=str(folder), layout="1x1"), runs=False)
    assert planned.notices == [first]


def test_real_weights_are_not_read_through_byte_tokens(tmp_path: Path, stories260k: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories260k, folder)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(ModelError, match=r"got only tokenizer.model, which is not read"):
        prepared(model=str(folder))
    timing = prepared(model=str(folder), executor="timing")  # draws tokens anyway, and says so
    assert timing.tokenizer.kind == "bytes"


def test_what_does_not_fit_names_what_would() -> None:
    with pytest.raises(CapacityError) as caught:
        prepared(model="llama-8b", layout="2x2", max_model_len=1024, executor="timing")
    assert caught.value.layout == "2x2"
    assert caught.value.missing > 0
    assert "bytes missing; the smallest layout that fits is " in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(LayoutError, match="layout 4x1: 4 stages, but tiny has 3 layers"):
        prepared(layout="4x1")


def test_every_package_s_errors_are_known() -> None:
    names = {error.__name__ for error in KNOWN_ERRORS}
    assert names == {"ChipError", "CompilerError", "InterconnectError", "RackError"}


def test_a_session_closes_its_rack(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(LocalRack, "close", lambda self: closed.append(self))
    session = Session(prepared())
    assert session.engine.rack is session.rack
    with pytest.raises(ZeroDivisionError), session:
        raise ZeroDivisionError
    assert closed == [session.rack]


@pytest.mark.parametrize("transport", ["ray", "process"])
def test_what_a_rack_of_processes_is_started_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, transport: str
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []

    def start(*args: Any, **options: Any) -> str:
        calls.append((args, options))
        return "rack"

    monkeypatch.setattr(f"rack.run.remote.start_{transport}_rack", start)
    ready = prepared(transport=transport, step_timeout_s=9.0)
    images = Images(folder=tmp_path, digests={})
    with_images = Prepared(
        config=ready.config, model=ready.model, hardware=ready.hardware, compiled=ready.compiled,
        tokenizer=ready.tokenizer, images=images,
    )  # fmt: skip

    def progress(stage: str, done: int, total: int) -> None:
        """Take nothing in."""

    assert open_rack(with_images, progress) == "rack"  # type: ignore[comparison-overlap]
    ((args, options),) = calls
    again = options.pop("compile_again")((3, 2, 1, 0, 7)[: ready.compiled.layout.chips])
    assert again.network.binding == (3, 2, 1, 0, 7)[: ready.compiled.layout.chips]
    assert set(again.steps) == set(ready.compiled.steps)
    assert args == (ready.compiled, ready.model.weights_ref, ready.hardware)
    assert options == {
        "step_timeout_s": 9.0, "progress": progress, "images": images, "executor": "fast",
        "spares": 0, "errors": {},
    }  # fmt: skip


def test_a_session_answers() -> None:
    with Session(prepared(max_model_len=32, prefill_chunk=4)) as session:
        done = session.engine.generate([256, 65], SamplingParams(max_tokens=2)).run()
        assert len(done.token_ids) == 2
        assert session.rack.saturated() == 0


@pytest.mark.parametrize(("transport", "executor"), [("ray", "timing"), ("process", "fast")])
def test_racks_without_ray_share_nothing(transport: str, executor: str) -> None:
    loaded = "rack.run.membership" in sys.modules
    with shared_by_racks(RunConfig(model="tiny", transport=transport, executor=executor)):
        assert ("rack.run.membership" in sys.modules) == loaded


def test_racks_on_ray_share_a_cluster() -> None:
    pytest.importorskip("ray")
    from rack.run.membership import MEMBERSHIP

    with shared_by_racks(RunConfig(model="tiny")):
        assert MEMBERSHIP._holds == 1
    assert MEMBERSHIP._holds == 0
