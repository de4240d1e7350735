"""Artifacts: written, read back, run with the same hashes; damaged or stale ones refused."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from chip.errors import ScheduleViolation
from compiler.artifact import MANIFEST, SCHEDULES, file_entry, read_manifest, write_manifest
from compiler.errors import ArtifactError, CapacityError
from rack.commands.compile import main as compile_main
from rack.run.config import RunConfig
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

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
    """Change the manifest and its digest with it."""
    write_manifest(folder, {**json.loads((folder / MANIFEST).read_text()), **changes})


def test_an_artifact_runs_as_the_model_it_was_made_from(artifact: Path) -> None:
    assert run(str(artifact)) == run("tiny", layout="2x2+1", prefill_chunk=4)
    compiled = prepare(RunConfig(model=str(artifact), transport="local")).compiled
    manifest = json.loads((artifact / MANIFEST).read_text())
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
    assert "wanted format version 4, got 99; compile the model again" in refused(artifact)


def test_a_manifest_that_is_not_json_is_refused(artifact: Path) -> None:
    (artifact / MANIFEST).write_text("{")
    assert "manifest.json: wanted a manifest, got" in refused(artifact)


def test_a_schedule_that_is_not_the_manifest_s_is_stale(artifact: Path) -> None:
    edit(artifact, schedule_hash="0" * 64)
    assert "manifest.json: stale: wanted schedule_hash 000" in refused(artifact)


def test_a_changed_profile_is_stale(artifact: Path) -> None:
    machine = json.loads((artifact / MANIFEST).read_text())["machine"]
    edit(artifact, machine={**machine, "chip": {**machine["chip"], "clock_hz": 1_000_000_000}})
    assert refused(artifact).endswith(
        "stale: profile lesson: chip.clock_hz: it was made with 1000000000, now it is 900000000"
    )


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


# -- digests: everything that decides a result


@pytest.fixture(scope="module")
def sound(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a trained model with its tokenizer; not to be changed."""
    folder = tmp_path_factory.mktemp("sound") / "artifact"
    argv = [str(stories260k), "--layout", "1x2", "--max-model-len", "8", "--prefill-chunk", "2"]
    assert compile_main([*argv, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def spoiled(sound: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    shutil.copytree(sound, folder)
    return folder


def test_every_file_is_in_the_manifest(sound: Path) -> None:
    files = json.loads((sound / MANIFEST).read_text())["files"]
    assert {*files, MANIFEST} == {path.name for path in sound.iterdir()}
    assert {"tokenizer.json", "config.json", SCHEDULES, "chip_0001.bin"} <= set(files)


def test_a_swapped_token_is_corrupt(spoiled: Path) -> None:
    path = spoiled / "tokenizer.json"
    text = path.read_text()
    vocabulary = json.loads(text)["model"]["vocab"]
    tokens = {number: token for token, number in vocabulary.items()}
    one, other = tokens[300], tokens[301]
    swap = {f'"{one}": 300': f'"{one}": 301', f'"{other}": 301': f'"{other}": 300'}
    for before, after in swap.items():
        assert before in text or before.replace(": ", ":") in text
        text = text.replace(before, after).replace(before.replace(": ", ":"), after)
    path.write_text(text[: len(path.read_text())].ljust(path.stat().st_size))
    assert "tokenizer.json: corrupt: wanted" in refused(spoiled)


@pytest.mark.parametrize("key", ["clock_hz", "sram_bytes", "forward_cycles"])
def test_a_number_of_the_chip_cannot_be_changed_unseen(spoiled: Path, key: str) -> None:
    path = spoiled / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["machine"]["chip"][key] += 1
    path.write_text(json.dumps(manifest))
    assert "manifest.json: corrupt: wanted digest" in refused(spoiled)
    write_manifest(spoiled, manifest)
    assert f"stale: profile lesson: chip.{key}: it was made with" in refused(spoiled)


def test_how_the_manifest_is_spaced_changes_nothing(spoiled: Path, sound: Path) -> None:
    path = spoiled / MANIFEST
    path.write_text("  " + json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    assert run(str(spoiled)) == run(str(sound))


def test_the_hashes_do_not_know_the_folder(sound: Path, stories260k: Path, tmp_path: Path) -> None:
    (tmp_path / "other name").symlink_to(sound)
    options = {"layout": "1x2", "max_model_len": 8, "prefill_chunk": 2}
    (tmp_path / "model").symlink_to(stories260k)
    moved = shutil.copytree(stories260k, tmp_path / "moved")
    wanted = run(str(sound))
    assert run(f"{tmp_path}/other name/") == wanted
    for model in (stories260k, f"{tmp_path}/model/", moved):
        assert run(str(model), **options) == wanted


@pytest.mark.parametrize(
    ("name", "spoil", "text"),
    [
        (SCHEDULES, lambda p: p.unlink(), "wanted a file of the artifact, got nothing"),
        ("chip_0001.bin", lambda p: p.unlink(), "wanted a file of the artifact, got nothing"),
        ("chip_0001.bin", lambda p: os.truncate(p, 9), "bytes, got 9"),
        ("tokenizer.json", lambda p: p.write_text("{}"), "bytes, got 2"),
        ("chip_0000.bin", lambda p: (p.unlink(), p.mkdir()), "got no regular file"),
        ("config.json", lambda p: (p.unlink(), os.mkfifo(p)), "got no regular file"),
        ("config.json", lambda p: (p.unlink(), p.symlink_to("no")), "got nothing"),
        (
            MANIFEST,
            lambda p: (p.unlink(), p.mkdir()),
            "wanted a manifest, got it is no regular file",
        ),
        (
            MANIFEST,
            lambda p: (p.unlink(), p.symlink_to("no")),
            "wanted a manifest, got [Errno 2]",
        ),
        ("chat_template.jinja", lambda p: p.write_text(""), "own files only, got another"),
        ("chip_0002.bin", lambda p: p.mkdir(), "own files only, got another"),
    ],
)
def test_what_may_stand_in_a_folder(
    spoiled: Path, name: str, spoil: Callable[[Path], Any], text: str
) -> None:
    spoil(spoiled / name)
    assert text in (got := refused(spoiled))
    assert f"/{name}: " in got


def test_links_to_the_same_bytes_and_hidden_files_do_no_harm(spoiled: Path, sound: Path) -> None:
    for path in (spoiled / "chip_0000.bin", spoiled / SCHEDULES):
        path.unlink()
        path.symlink_to(sound / path.name)
    (spoiled / ".DS_Store").write_text("")
    assert run(str(spoiled)) == run(str(sound))


def test_an_image_that_grows_after_it_was_opened(spoiled: Path) -> None:
    prepared = prepare(RunConfig(model=str(spoiled), transport="local"))
    with (spoiled / "chip_0001.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"chip_0001.bin: corrupt: wanted SHA-256"):
        Session(prepared)
    (spoiled / "chip_0001.bin").unlink()
    with pytest.raises(ArtifactError, match=r"chip_0001.bin: wanted a file of the artifact, got"):
        Session(prepared)


# -- options and weights


def test_what_came_of_an_option_may_be_asked_for(sound: Path) -> None:
    asked = RunConfig(model=str(sound), layout="1x2", max_model_len=8, transport="local")
    assert str(prepare(asked).compiled.layout) == "1x2"
    given = RunConfig(model=str(sound), dtype="int8", given=frozenset({"dtype"}), transport="local")
    assert prepare(given).compiled.dtype == "int8"


def test_an_option_at_its_default_is_refused_where_it_was_given(
    stories260k: Path, tmp_path: Path
) -> None:
    argv = [str(stories260k), "--layout", "1x1", "--dtype", "fp16", "--max-model-len", "8"]
    assert compile_main([*argv, "--hardware", "groqrack", "-o", str(tmp_path / "a")]) == 0
    folder = str(tmp_path / "a")
    assert prepare(RunConfig(model=folder, transport="local")).hardware.name == "groqrack"
    for key, text in (
        ("dtype", "dtype: wanted int8, it was made with fp16"),
        ("hardware", "stale: profile lesson: chips_per_card: it was made with 1, now it is 2"),
    ):
        config = RunConfig(model=folder, given=frozenset({key}), transport="local")
        with pytest.raises(ArtifactError, match=text):
            prepare(config)


def test_a_profile_that_is_gone(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text('name = "mine"\ninherits = "lesson"\n')
    argv = ["tiny", "--layout", "1x1", "--max-model-len", "32", "--prefill-chunk", "4"]
    assert compile_main([*argv, "--hardware", str(profile), "-o", str(tmp_path / "a")]) == 0
    assert "decode" in str(prepare(RunConfig(model=str(tmp_path / "a"))).compiled.steps)
    moved = profile.rename(tmp_path / "yours.toml")
    assert f"it was made for {profile}: {profile}: profile: wanted" in refused(tmp_path / "a")
    wanted = run(str(tmp_path / "a"), hardware="lesson", given=frozenset({"hardware"}))
    assert run(str(tmp_path / "a"), hardware=str(moved)) == wanted


def test_an_embedding_with_the_same_date_is_stale(stories260k: Path, tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "artifact"
    shutil.copytree(stories260k, model)
    argv = [str(model), "--layout", "1x1", "--max-model-len", "8", "--prefill-chunk", "2"]
    assert compile_main([*argv, "-o", str(folder)]) == 0
    path = model / "model.safetensors"
    about, data = path.stat(), bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start = header["model.embed_tokens.weight"]["data_offsets"][0]
    data[8 + int.from_bytes(data[:8], "little") + start] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert "stale: model.embed_tokens.weight in" in refused(folder)
    assert "weights: wanted" not in refused(folder, weights=str(model))
    assert prepare(RunConfig(model=str(folder), executor="timing")).compiled.steps  # looks none up


def test_synthetic_weights_are_no_folder_s(artifact: Path) -> None:
    text = "weights: wanted /some/where, it was made with synthetic ones"
    assert text in refused(artifact, weights="/some/where")


def test_an_artifact_of_the_first_layers_on_repeated_weights(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    argv = ["tiny", "--layers", "2", "--weights", "repeat", "--layout", "1x1"]
    argv += ["--max-model-len", "32", "--prefill-chunk", "4", "-o", str(folder)]
    assert compile_main(argv) == 0
    weights = json.loads((folder / MANIFEST).read_text())["weights"]
    assert weights == {"kind": "synthetic", "seed": 0, "repeat": True, "of_layers": 3}
    once = run("tiny", layers=2, weights="repeat", layout="1x1", max_model_len=32, prefill_chunk=4)
    assert run(str(folder)) == once
    assert run(str(folder), layers=2, weights="repeat") == once
    said = prepare(RunConfig(model=str(folder), transport="local")).notices
    assert said[:2] == [
        "SYNTHETIC weights of tiny, the first 2 of 3 layers (seed 0, the same in all layers of a "
        "kind): text is noise",
        "tiny, the first 2 of 3 layers: neither tokens nor cycles are those of the whole model",
    ]
    assert "layers: wanted 1, it was made with 2" in refused(folder, layers=1)
    text = "weights: wanted /some/where, it was made with synthetic ones that repeat"
    assert text in refused(folder, weights="/some/where")
    edit(folder, weights={**weights, "repeat": 7})
    assert "weights: repeat: wanted true or nothing, got 7" in refused(folder)


# -- whoever spoils an artifact may work its digests out again


def reseal(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: file_entry(folder / name) for name in manifest["files"]}
    write_manifest(folder, manifest)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("files",), [], "files: wanted an object, got []"),
        (("files", SCHEDULES), 3, "files: schedules.msgpack: wanted an object, got 3"),
        (("files", SCHEDULES, "bytes"), -1, "bytes: wanted an integer in 0.."),
        (("files", SCHEDULES, "sha256"), "x", "sha256: wanted a text like [0-9a-f]{64}, got 'x'"),
        (("files", SCHEDULES, "more"), 1, "files: schedules.msgpack: 'more': an unknown key"),
        (("model",), None, "model: wanted an object, got None"),
        (("model", "rope_scaling"), 7, "model: rope_scaling: wanted an object, got 7"),
        (("model", "num_layers"), "5", "num_layers: wanted a positive integer"),
        (("model", "hidden_size"), 128, "memories: stale"),
        (("layout",), "0x0", "layout '0x0': wanted at least one stage"),
        (("layout",), "99999x9", "wanted at most 8192 chips"),
        (("layout",), "1x3", "chip_0002.bin: wanted a value, got nothing"),
        (("dtype",), "int3", "dtype: wanted one of int8, int4, fp16, got 'int3'"),
        (
            ("int4_group",),
            "64",
            "int4_group: wanted an integer in 0..4611686018427387904, got '64'",
        ),
        (("int4_group",), 64, "int4_group: wanted dtype int4, whose weights have groups, got"),
        (("max_model_len",), 0, "max_model_len: wanted an integer in 1.."),
        (("max_model_len",), 10**9, "stale: max_model_len: "),
        (("buckets",), [8, 4], "buckets: wanted rising positive sizes"),
        (("binding",), [0, 0], "binding: wanted 2 different physical slots"),
        (("binding",), [0, 10**9], "binding: wanted an integer in 0..65536"),
        (("top_k",), 1.0, "top_k: wanted an integer in 0.."),
        (("machine",), [], "machine: wanted an object, got []"),
        (("machine", "profile"), 3, "machine: profile: wanted a text"),
        (("config",), "x", "config: wanted an object, got 'x'"),
        (("weights", "kind"), "x", "weights: kind: wanted one of safetensors, synthetic, got 'x'"),
        (("weights", "repeat"), 7, "weights: 'repeat': an unknown key"),
        (("weights", "of_layers"), 3, "weights: of_layers: wanted an integer in 6.."),
        (("weights", "embedding"), "x", "embedding: wanted a text like [0-9a-f]{64}, got 'x'"),
        (("schedule_hash",), 5, "schedule_hash: wanted a text like"),
    ],
)
def test_a_sealed_manifest_of_nonsense(
    spoiled: Path, path: tuple[str, ...], value: object, text: str
) -> None:
    manifest = inner = json.loads((spoiled / MANIFEST).read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    write_manifest(spoiled, manifest)
    assert text in refused(spoiled)


STALE = "stale: not as this compiler lays it out; compile it again"


def put(value: Any, path: tuple[Any, ...], new: object) -> Any:
    out = inner = copy.deepcopy(value)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return out


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("links", 0, 2), 99, f"links: {STALE}"),
        (("routes",), None, f"routes: {STALE}"),
        (("memories", 0, "tensors", 0, "address"), 320, f"memories: {STALE}"),
        (("more",), 1, "'more': an unknown key"),
        (("steps",), {}, "steps: wanted a list, got {}"),
        (("steps",), [], "steps: wanted decode/8, prefill2/8, got 0 steps"),
        (("steps", 0), 3, "steps: decode/8: wanted an object, got 3"),
        (("steps", 0, "kind", "rows"), 2, f"steps: decode/8: kind: {STALE}"),
        (("steps", 0, "more"), 2, "steps: decode/8: 'more': an unknown key"),
        (("steps", 0, "cycles"), 1, "steps: decode/8: cycles: wanted an integer in"),
        (("steps", 0, "programs"), [], "programs: wanted one for each of 3 nodes, got []"),
        (("steps", 0, "programs", 1), 4, "node 1: operation 2: wanted one, got nothing"),
        (("steps", 0, "programs", 1), [], "node 1: operation 2: wanted one, got nothing"),
        (("steps", 0, "programs", 1, 2), "x", "operation 2: wanted a list with its cycles"),
        (
            ("steps", 0, "programs", 1, 2, 3),
            -1,
            "operation 2: wanted an integer in 0..",
        ),
        (("steps", 0, "programs", 1, 2, 3), 1 << 41, "wanted an end from cycle 2199023255552 on"),
        (("steps", 0, "programs", 1, 2, 0), "nope", f"programs: node 1: {STALE}"),
        (("steps", 0, "programs", 1, 2, 2), {"k": 1}, f"programs: node 1: {STALE}"),
        (("steps", 0, "transfers"), [], f"transfers: {STALE}"),
        (("steps", 0, "host", "size"), 5, f"host: {STALE}"),
        (("steps", 0, "realign"), [], "realign: wanted a list for each of 3 nodes, got []"),
        (("steps", 0, "realign", 0), 3, "realign: node 0: wanted a list of spans"),
        (
            ("steps", 0, "realign", 0),
            [[1, 2]],
            "node 0: wanted no stops, as clocks are exact, got 1",
        ),
    ],
)
def test_sealed_schedules_of_nonsense(
    spoiled: Path, path: tuple[Any, ...], value: object, text: str
) -> None:
    stored = msgpack.unpackb((spoiled / SCHEDULES).read_bytes(), strict_map_key=False)
    (spoiled / SCHEDULES).write_bytes(msgpack.packb(put(stored, path, value)))
    reseal(spoiled)
    assert text in (got := refused(spoiled))
    assert f"{SCHEDULES}: " in got


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([[1]], "realign: node 0: wanted (from, to), got 1 numbers"),
        ([[5, 4]], "realign: node 0: wanted an integer in 5.."),
    ],
)
def test_sealed_stops_of_nonsense(tmp_path: Path, spans: object, text: str) -> None:
    argv = ["tiny", "--layout", "1x1", "--hardware", "groqrack-drift", "--max-model-len", "32"]
    folder = tmp_path / "a"
    assert compile_main([*argv, "--prefill-chunk", "4", "-o", str(folder)]) == 0
    stored = msgpack.unpackb((folder / SCHEDULES).read_bytes(), strict_map_key=False)
    stored["steps"][0]["realign"][0] = spans
    (folder / SCHEDULES).write_bytes(msgpack.packb(stored))
    reseal(folder)
    assert text in refused(folder)


def test_cycles_that_lie_are_seen_by_the_chips(spoiled: Path) -> None:
    """They are all that a file may bring; a run checks each of them."""
    path = spoiled / SCHEDULES
    stored = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    for step in stored["steps"]:
        for operation in (operation for program in step["programs"] for operation in program):
            operation[3:5] = [cycle + 1 for cycle in operation[3:5]]
        for transfer in step["transfers"]:
            transfer[6:9] = [cycle + 1 for cycle in transfer[6:9]]
        step["cycles"] += 1
    path.write_bytes(msgpack.packb(stored))
    reseal(spoiled)
    text = refused(spoiled)
    assert "stale: wanted schedule_hash" in text
    edit(spoiled, schedule_hash=text.rpartition(" ")[2])
    with pytest.raises(ScheduleViolation, match="host"):
        run(str(spoiled))
