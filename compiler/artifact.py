"""A compiled model as a folder: manifest, schedules, one SRAM image per chip, tokenizer files.

    manifest.json        versions, hashes, resolved configuration, where the weights came from
    schedules.msgpack    links, memories, every step
    chip_0000.bin …      the constants of each chip's SRAM: weights, then scales and norms

The manifest has the size and SHA-256 of every file, and a digest of itself. A file that it does not
name is refused. Opening an artifact checks the manifest, all sizes, and the contents of all files
but the images: each chip checks its own image as it reads it (rack/run/stored.py). Links, memories
and operations are laid out again and must equal what is stored (compiler/replay.py). So an artifact
decides nothing but cycles.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgpack

from compiler.checked import Table, parse_json, parse_msgpack
from compiler.errors import ArtifactError, CompilerError
from compiler.files import shown
from compiler.ir import StepSchedule
from compiler.model.config import ModelConfig
from compiler.parallel import collector_off
from compiler.pipeline import (
    DTYPES,
    FORMAT_VERSION,
    CompiledModel,
    Ground,
    Options,
    compiled_model,
    lay_out,
    schedule_digest,
)
from compiler.place.layout import Layout, parse_layout
from compiler.place.target import Target
from compiler.regular import read_file
from compiler.replay import replay_step

MANIFEST, SCHEDULES = "manifest.json", "schedules.msgpack"
MOST_MANIFEST, MOST_SCHEDULES, MOST_COPIED = 1 << 26, 1 << 33, 1 << 30  # bytes
MOST_SLOTS = 1 << 16  # of a machine that an artifact may be bound to
HEX = "[0-9a-f]{64}"


def image_name(chip: int) -> str:
    """Return the file name of a chip's SRAM image."""
    return f"chip_{chip:04}.bin"


def is_artifact(folder: Path) -> bool:
    """Say whether a folder is an artifact, even a damaged one, rather than a model."""
    return os.path.lexists(folder / MANIFEST) and not any(folder.glob("*.safetensors"))


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its digest: 64 hex digits. Spacing is ignored."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest: its size and its SHA-256."""
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with its digest. A folder without a manifest is no artifact."""
    temporary = folder / (MANIFEST + ".part")
    sealed = {**manifest, "digest": manifest_digest(manifest)}
    temporary.write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    temporary.rename(folder / MANIFEST)


def write_artifact(
    folder: Path,
    compiled: CompiledModel,
    images: Iterable[tuple[int, Sequence[memoryview]]],
    extra: Mapping[str, Any],
    copies: Mapping[str, Path] | None = None,
) -> None:
    """Write an artifact. `images` yields (chip, regions of its constants), one chip at a time.

    `extra` is added to the manifest as it is. `copies` are files to copy, by their names in the
    folder. Raises ArtifactError when the folder has files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ArtifactError(f"{folder}: wanted an empty or new folder, got one with files")
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for chip, regions in images:  # made one by one, as the loop asks
        entries[image_name(chip)] = _write(folder / image_name(chip), regions)
    entries[SCHEDULES] = _write(folder / SCHEDULES, [msgpack.packb(stored_form(compiled))])
    for name, path in (copies or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        entries[name] = _write(folder / name, [read_file(path, MOST_COPIED)])
    write_manifest(
        folder,
        {
            "format_version": FORMAT_VERSION,
            "schedule_hash": compiled.schedule_hash,
            "model": compiled.config.to_dict(),
            "target": compiled.target_name,
            "layout": str(compiled.layout),
            "dtype": compiled.dtype,
            "int4_group": compiled.int4_group,
            "max_model_len": compiled.max_model_len,
            "prefill_chunk": compiled.prefill_chunk,
            "buckets": list(compiled.buckets),
            "top_k": compiled.top_k,
            "sequences": compiled.sequences,
            "batch": compiled.batch,
            "binding": list(compiled.network.binding),
            "files": entries,
            **extra,
        },
    )


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file; return its entry in the manifest."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
    return {"bytes": size, "sha256": digest.hexdigest()}


def read_manifest(folder: Path) -> Table:
    """Read and check the manifest. The folder must hold its files and no others.

    Raises ArtifactError.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise ArtifactError(
            f"{folder}: wanted an artifact (rack.compile makes one), got no {MANIFEST} there"
        )
    try:
        data = read_file(path, MOST_MANIFEST)
    except OSError as error:
        raise ArtifactError(f"{path}: wanted a manifest, got {error}") from None
    found = parse_json(str(path), data, "a manifest")
    manifest = Table(str(path), found)
    version = manifest.raw("format_version")
    if version != FORMAT_VERSION:
        got = f"{shown(version)}; compile the model again"
        raise ArtifactError(f"{path}: wanted format version {FORMAT_VERSION}, got {got}")
    wanted = manifest.text("digest", HEX)
    if (got := manifest_digest(found)) != wanted:
        raise ArtifactError(f"{path}: corrupt: wanted digest {wanted}, its values give {got}")
    _check_folder(folder, manifest.table("files"))
    return manifest


def _check_folder(folder: Path, files: Table) -> None:
    """Refuse a file that is missing, of another size or not in the manifest."""
    names = files.names()
    for name in names:
        entry = files.table(name)
        entry.only("bytes", "sha256")
        entry.text("sha256", HEX)
        path, wanted = folder / name, entry.integer("bytes")
        try:
            about = os.stat(path)
        except (OSError, ValueError):
            raise ArtifactError(f"{path}: wanted a file of the artifact, got nothing") from None
        if not stat.S_ISREG(about.st_mode) or not _is_inside(name):
            raise ArtifactError(f"{path}: wanted a file of the artifact, got no regular file")
        if about.st_size != wanted:
            raise ArtifactError(f"{path}: corrupt: wanted {wanted} bytes, got {about.st_size}")
    known = {str(path) for name in (*names, MANIFEST) for path in (Path(name), *Path(name).parents)}
    for where, folders, found in os.walk(folder):
        for name in sorted((*folders, *found)):
            path = Path(where, name)
            if not name.startswith(".") and str(path.relative_to(folder)) not in known:
                raise ArtifactError(f"{path}: wanted the artifact's own files only, got another")


def _is_inside(name: str) -> bool:
    """Say whether a name stays in the folder: relative, normal, without `..`."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name


def check_file(folder: Path, manifest: Table, name: str, most: int = MOST_COPIED) -> bytes:
    """Return a file of the artifact. Raises ArtifactError if its SHA-256 is not the manifest's."""
    entry, path = manifest.table("files").table(name), folder / name
    try:
        data = read_file(path, most)
    except OSError as error:
        raise ArtifactError(f"{path}: wanted a file of the artifact, got {error}") from None
    wanted, got = entry.text("sha256", HEX), hashlib.sha256(data).hexdigest()
    if got != wanted:
        raise ArtifactError(f"{path}: corrupt: wanted SHA-256 {wanted}, got {got}")
    return data


@collector_off()
def read_artifact(
    folder: Path, target: Target, manifest: Table | None = None
) -> tuple[CompiledModel, Table]:
    """Rebuild the compiled model for a machine; return it and the manifest.

    Everything but cycles is laid out again and must equal what is stored. The hash of the
    schedules must equal the manifest's. Raises ArtifactError.
    """
    manifest = manifest or read_manifest(folder)
    config, layout, options = _settings(manifest)
    path = folder / SCHEDULES
    stored = Table(str(path), parse_msgpack(str(path), _check_files(folder, manifest, layout)))
    try:
        ground = lay_out(config, target, layout, options)
        steps = _read_steps(ground, target, stored)
    except ArtifactError:
        raise
    except CompilerError as error:  # the manifest asks for what cannot be compiled
        raise ArtifactError(f"{manifest.what}: stale: {error}") from None
    compiled = compiled_model(config, target, layout, ground, steps)
    digest, wanted = schedule_digest(compiled), manifest.text("schedule_hash", HEX)
    if digest != wanted:
        raise ArtifactError(
            f"{manifest.what}: stale: wanted schedule_hash {wanted}, the schedules give {digest}"
        )
    return replace(compiled, schedule_hash=digest), manifest


def _settings(manifest: Table) -> tuple[ModelConfig, Layout, Options]:
    """Return the settings that the model was compiled with."""
    model = manifest.table("model")
    model.text("name")
    model.items("eos_token_ids")
    if model.raw("rope_scaling") is not None:
        model.table("rope_scaling")
    for key in ("windows",):  # of models that have some
        if key in model.names():
            model.items(key)
    group = manifest.raw("int4_group")
    try:
        config = ModelConfig.from_dict(manifest.raw("model"))
        layout = parse_layout(manifest.text("layout"))
        options = Options(
            dtype=manifest.choice("dtype", DTYPES),
            int4_group=None if group is None else manifest.integer("int4_group"),
            max_model_len=manifest.integer("max_model_len", 1),
            prefill_chunk=manifest.integer("prefill_chunk", 1),
            buckets=manifest.integers("buckets", 1),
            top_k=manifest.integer("top_k"),
            sequences=manifest.integer("sequences", 1),
            batch=manifest.integer("batch", 1),
            binding=manifest.integers("binding", 0, MOST_SLOTS),
        )
    except ArtifactError:
        raise
    except CompilerError as error:
        raise ArtifactError(f"{manifest.what}: {error}") from None
    return config, layout, options


def _check_files(folder: Path, manifest: Table, layout: Layout) -> bytes:
    """Check every file but the images, which must only be there; return the schedules."""
    files = manifest.table("files")
    images = {image_name(chip) for chip in range(layout.chips)}
    for name in sorted(images):
        files.table(name)
    schedules = check_file(folder, manifest, SCHEDULES, MOST_SCHEDULES)
    for name in files.names():
        if name not in images and name != SCHEDULES:
            check_file(folder, manifest, name)
    return schedules


def _read_steps(ground: Ground, target: Target, stored: Table) -> dict[str, StepSchedule]:
    head = _head_form(ground)
    stored.only(*head, "steps")
    for key, value in head.items():
        _check_same(f"{stored.what}: {key}", stored.raw(key), value)
    kinds, items = ground.kinds, stored.items("steps")
    if len(items) != len(kinds):
        names = ", ".join(kind.name for kind in kinds)
        raise ArtifactError(f"{stored.what}: steps: wanted {names}, got {len(items)} steps")
    steps = {}
    for kind, item in zip(kinds, items, strict=True):
        what = f"{stored.what}: steps: {kind.name}"
        step = steps[kind.name] = replay_step(ground, kind, target, Table(what, item))
        form = _step_form(step)
        for key, value in form.items():
            if key == "programs":
                for node, (was, now) in enumerate(zip(item[key], value, strict=True)):
                    _check_same(f"{what}: {key}: node {node}", was, now)
            else:
                _check_same(f"{what}: {key}", item.get(key), value)
        Table(what, item).only(*form)
    return steps


def _check_same(what: str, was: object, now: object) -> None:
    try:
        same = bool(msgpack.packb(was) == msgpack.packb(now))
    except ValueError:  # nested too deep to be written
        same = False
    if not same:
        raise ArtifactError(f"{what}: stale: not as this compiler lays it out; compile it again")


def stored_form(compiled: CompiledModel) -> dict[str, Any]:
    """Return the contents of schedules.msgpack, in its types."""
    steps = [_step_form(step) for step in compiled.steps.values()]
    return {**_head_form(compiled), "steps": steps}


def _head_form(ground: Ground | CompiledModel) -> dict[str, Any]:
    network = ground.network
    return {
        "links": [link.to_list() for link in network.links],
        "routes": [[src, list(dst), list(way)] for (src, dst), way in network.routes.items()],
        "ports_in_use": network.ports_in_use,
        "clock": asdict(network.clock),
        "sync": [[[hop.slot, hop.latency_cycles] for hop in path] for path in network.sync],
        "memories": [
            {**asdict(memory), "tensors": [asdict(tensor) for tensor in memory.tensors]}
            for memory in ground.memories
        ],
    }


def _step_form(step: StepSchedule) -> dict[str, Any]:
    return {
        "kind": asdict(step.kind),
        "host": asdict(step.host),
        "cycles": step.cycles,
        "transfers": [transfer.to_list() for transfer in step.transfers],
        "programs": [
            [operation.to_list() for operation in program.operations] for program in step.programs
        ],
        "realign": [program.realign for program in step.programs],
    }
