"""Spoiled artifacts: each is refused in one line, or answers as the sound one does.

A case copies a small artifact and spoils it: bytes of its files, what stands in their place, values
of its manifest and schedules. Some cases are hostile: whoever spoils the artifact works its digests
out again. `--fuzz-examples N` asks for more.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from fuzz_kit import examples, judge, spoil_bytes, spoil_file, spoil_json, spoil_value

from compiler.artifact import MANIFEST, SCHEDULES, file_entry, write_manifest
from rack.commands.compile import main as compile_main
from rack.run.config import RunConfig
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

Answer = tuple[str | None, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def artifact(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "artifact"
    argv = [str(stories260k), "--layout", "1x2", "--max-model-len", "8", "--prefill-chunk", "2"]
    assert compile_main([*argv, "-o", str(folder)]) == 0
    return folder


def ask(folder: Path) -> Answer:
    """Open an artifact and let it answer: a hash of every logit, ids, cycles, a prompt's ids."""
    prepared = prepare(RunConfig(model=str(folder), transport="local"))
    ids = prepared.tokenizer.encode("Once upon a")
    with Session(prepared) as session:
        done = session.engine.generate(ids[:3], SamplingParams(max_tokens=2, temperature=0)).run()
    return done.data_hash, tuple(done.token_ids), tuple(done.decode_cycles), tuple(ids)


def reseal(folder: Path, manifest: dict[str, Any] | None = None) -> None:
    """Make the digests of files and manifest right again."""
    if manifest is None:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name in manifest["files"]:
            manifest["files"][name] = file_entry(folder / name)
    write_manifest(folder, manifest)


def any_bytes(rng: random.Random, folder: Path) -> str:
    path = rng.choice(sorted(folder.iterdir()))
    data, what = spoil_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {what}"


def any_place(rng: random.Random, folder: Path) -> str:
    return spoil_file(rng, rng.choice(sorted(folder.iterdir())))


def extra(rng: random.Random, folder: Path) -> str:
    names = ("chat_template.jinja", "added_tokens.json", "chip_0002.bin", "x", "tokenizer.model")
    name = rng.choice(names)
    (folder / name).write_text(rng.choice(("", "{{ bos_token }}", "{}")))
    return f"{name} added"


def manifest_value(rng: random.Random, folder: Path) -> str:
    data, what = spoil_json(rng, (folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(data)
    return f"manifest: {what}"


def hostile_manifest(rng: random.Random, folder: Path) -> str:
    manifest = json.loads((folder / MANIFEST).read_text())
    for _ in range(9):
        spoiled, what = spoil_value(rng, manifest)
        if isinstance(spoiled, dict) and "Raw" not in repr(type(spoiled)):
            break
    try:
        reseal(folder, spoiled)
    except (TypeError, ValueError, RecursionError):
        return manifest_value(rng, folder)  # JSON that a writer of JSON cannot write
    return f"manifest, sealed: {what}"


def hostile_schedules(rng: random.Random, folder: Path) -> str:
    path = folder / SCHEDULES
    if rng.random() < 0.3:
        data, what = spoil_bytes(rng, path.read_bytes())
    else:
        value = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
        spoiled, what = spoil_value(rng, value)
        try:
            data = msgpack.packb(spoiled, unicode_errors="surrogatepass")
        except (OverflowError, ValueError, TypeError):
            data, what = msgpack.packb(None), "nothing"
    path.write_bytes(data)
    reseal(folder)
    return f"schedules, sealed: {what}"


def hostile_file(rng: random.Random, folder: Path) -> str:
    path = rng.choice(sorted(set(folder.iterdir()) - {folder / MANIFEST, folder / SCHEDULES}))
    data, what = spoil_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    reseal(folder)
    return f"{path.name}, sealed: {what}"


SPOILERS: tuple[Callable[[random.Random, Path], str], ...] = (
    any_bytes, any_place, extra, manifest_value, hostile_manifest, hostile_manifest,
    hostile_schedules, hostile_schedules, hostile_file,
)  # fmt: skip


def test_spoiled_artifacts(artifact: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    sound, came = ask(artifact), Counter[str]()
    for number in range(examples(pytestconfig, 0.2)):
        rng = random.Random(number)
        folder = tmp_path / f"case{number}"
        shutil.copytree(artifact, folder)
        spoil = rng.choice(SPOILERS)
        what = spoil(rng, folder)
        case = f"case {number}: {what}"
        outcome = judge(case, lambda folder=folder: ask(folder))  # type: ignore[misc]
        if outcome.result is None:
            came[f"{spoil.__name__} refused"] += 1
        elif spoil is hostile_file:  # other weights or another tokenizer, and their digests
            came[f"{spoil.__name__} answered"] += 1
        else:
            assert outcome.result == sound, f"{case}: another answer"
            came[f"{spoil.__name__} answered"] += 1
        shutil.rmtree(folder)
    print(dict(sorted(came.items())))
