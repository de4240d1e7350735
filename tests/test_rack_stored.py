"""Artifacts: written, read back, run with the same hashes; damaged or stale ones refused."""

import json
import shutil
from pathlib import Path

import pytest

from compiler.artifact import MANIFEST, SCHEDULES, read_artifact, read_manifest
from compiler.errors import ArtifactError, CapacityError
from rack.compile import main as compile_main
from rack.config import RunConfig
from rack.sampler import SamplingParams
from rack.session import Session, prepare

GREEDY = SamplingParams(max_tokens=3)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    argv = ["tiny", "--layout", "2x2+1", "--prefill-chunk", "4", "-o", str(folder)]
    assert compile_main(argv) == 0
    return folder


def run(model: str, **extra: object) -> tuple[str | None, str, list[int]]:
    config = RunConfig(model=model, transport="local", **extra)
    with Session(prepare(config)) as session:
        completion = session.engine.generate([1, 2, 3], GREEDY).run()
        compiled = session.prepared.compiled
        return completion.data_hash, compiled.schedule_hash, completion.decode_cycles


def refused(folder: Path, **extra: object) -> str:
    with pytest.raises(ArtifactError) as caught:
        run(str(folder), **extra)
    return str(caught.value)


def edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_artifact_runs_as_the_model_it_was_made_from(artifact: Path) -> None:
    assert run(str(artifact)) == run("tiny", layout="2x2+1", prefill_chunk=4)
    compiled, manifest = read_artifact(artifact)
    sizes = [(artifact / f"chip_{chip:04}.bin").stat().st_size for chip in range(5)]
    assert sizes == [sum(n for _, n in memory.constant_regions) for memory in compiled.memories]
    assert manifest["weights"] == {"kind": "synthetic", "seed": 0}


def test_a_trained_model_s_artifact_has_its_tokenizer(stories260k: Path, tmp_path: Path) -> None:
    argv = [str(stories260k), "--layout", "1x2", "-o", str(tmp_path)]
    assert compile_main(argv) == 0
    prepared = prepare(RunConfig(model=str(tmp_path), transport="local"))
    assert prepared.tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]


def test_an_artifact_has_every_template(stories260k: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(stories260k, model)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("T{{ eos_token }}")
    (model / "chat_template.jinja").write_text("D")
    (model / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert compile_main([str(model), "--layout", "1x1", "-o", str(tmp_path / "artifact")]) == 0
    prepared = prepare(RunConfig(model=str(tmp_path / "artifact"), transport="local"))
    chat = [{"role": "user", "content": "x"}]
    assert prepared.tokenizer.template.render(chat) == "D"
    assert prepared.tokenizer.template.render(chat, tools=[{}]) == "T</s>"


@pytest.mark.parametrize("name", [SCHEDULES, "chip_0003.bin"])
def test_a_changed_byte_is_corrupt(artifact: Path, name: str) -> None:
    data = bytearray((artifact / name).read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / name).write_bytes(data)
    assert f"{name}: corrupt: wanted SHA-256" in refused(artifact)


def test_a_missing_file_is_named(artifact: Path) -> None:
    (artifact / "chip_0002.bin").unlink()
    assert "chip_0002.bin: wanted a file of the artifact, got nothing" in refused(artifact)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: wanted an artifact (rack.compile makes one), got no manifest.json there"
    )


def test_another_version_is_refused(artifact: Path) -> None:
    edit(artifact, format_version=99)
    assert "wanted format version 3, got 99" in refused(artifact)


def test_a_manifest_that_is_not_json_is_refused(artifact: Path) -> None:
    (artifact / MANIFEST).write_text("{")
    assert "manifest.json: wanted a manifest, got" in refused(artifact)


def test_a_schedule_that_is_not_the_manifest_s_is_stale(artifact: Path) -> None:
    edit(artifact, schedule_hash="0" * 64)
    assert "manifest.json: stale: wanted schedule_hash 000" in refused(artifact)


def test_a_changed_profile_is_stale(artifact: Path) -> None:
    edit(artifact, hardware_digest="0" * 64)
    assert "stale: profile lesson has changed since" in refused(artifact)


def test_other_options_are_refused(artifact: Path) -> None:
    assert "layout: wanted 1x1, it was made with 2x2+1" in refused(artifact, layout="1x1")


def test_changed_weights_are_stale(stories260k: Path, tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "artifact"
    model.mkdir()
    for file in stories260k.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    assert compile_main([str(model), "--layout", "1x1", "-o", str(folder)]) == 0
    (model / "model.safetensors").touch()
    assert "are not those it was made from" in refused(folder)


def test_an_artifact_is_not_written_over_files(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_main(["tiny", "-o", str(artifact)]) == 1
    assert "wanted an empty or new folder" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(CapacityError) as caught:
        prepare(RunConfig(model="llama-8b", layout="4x4", transport="local"))
    text = str(caught.value)
    assert "chip 0 wants 447,303,680 bytes of SRAM and has 230,686,720" in text
    assert "216,616,960 bytes missing; the smallest layout that fits is 8x4+3" in text
