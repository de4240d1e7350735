"""Start from an artifact instead of a model, if it still fits the configuration.

An artifact is refused if the machine's profile, the weights or the wanted options are not those of
its making; the error names the difference. Each chip checks its own SRAM image as it reads it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.artifact import image_name, read_artifact, read_manifest
from compiler.checked import Table
from compiler.errors import ArtifactError
from compiler.files import shown
from compiler.model.config import ModelConfig
from compiler.model.frontend import REPEAT, Model, cut_notice
from compiler.model.layer import embeddings
from compiler.model.weights import WeightsKind, WeightsRef
from compiler.pipeline import CompiledModel
from compiler.regular import open_regular
from rack.errors import ProfileError
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware, profile_names
from rack.run.config import RunConfig

OPTIONS = (
    "dtype", "int4_group", "layers", "layout", "max_model_len", "prefill_chunk", "returns",
    "sequences", "batch",
)  # fmt: skip
ONLY_ASKED = ("layers", "returns")  # that have no result beside what was asked for
HEX = "[0-9a-f]{64}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The SRAM images of an artifact: SHA-256 by file name."""

    folder: Path
    digests: dict[str, str]

    def read(self, chip: int, regions: Sequence[memoryview]) -> None:
        """Read a chip's image into the regions of its memory. Raises ArtifactError.

        The digest is computed from the bytes in memory, so no byte is read twice.
        """
        name = image_name(chip)
        path, digest = self.folder / name, hashlib.sha256()
        try:
            with open_regular(path) as file:
                for region in regions:
                    left = region
                    while len(left) and (count := file.readinto(left)):  # type: ignore[attr-defined]
                        left = left[count:]
                    digest.update(region[: len(region) - len(left)])
                rest = file.read(1)
        except OSError as error:
            raise ArtifactError(f"{path}: wanted a file of the artifact, got {error}") from None
        digest.update(rest)
        wanted, got = self.digests.get(name), digest.hexdigest()
        if got != wanted or rest:
            raise ArtifactError(f"{path}: corrupt: wanted SHA-256 {wanted}, got {got}")


def machine_entry(config: RunConfig, hardware: Hardware) -> dict[str, Any]:
    """Return the machine's entry in a manifest: every number, and the path of its profile."""
    shipped = config.hardware in profile_names()
    name = config.hardware if shipped else os.path.abspath(config.hardware)
    return {"profile": name, **hardware.to_dict()}


def weights_entry(weights: WeightsRef) -> dict[str, Any]:
    """Return the weights' entry in a manifest: enough to open them, and to notice a change.

    Images hold all weights but the embeddings, whose rows the host looks up at run time.
    """
    entry = _weights_files(weights)
    digest = _embedding_digest(weights)
    return entry if digest is None else {**entry, "embedding": digest}


def _embedding_digest(weights: WeightsRef) -> str | None:
    """Return the SHA-256 of the embedding, or of those of several; None for synthetic ones."""
    found = [weights.digest_rows(name) for name in embeddings(weights.config)]
    if None in found or len(found) == 1:
        return found[0]
    return hashlib.sha256("".join(map(str, found)).encode()).hexdigest()


def _weights_files(weights: WeightsRef) -> dict[str, Any]:
    cut = {} if weights.of_layers is None else {"of_layers": weights.of_layers}
    if weights.kind is WeightsKind.SYNTHETIC:
        repeat = {"repeat": True} if weights.repeat else {}
        return {"kind": "synthetic", "seed": weights.seed, **repeat, **cut}
    assert weights.folder is not None
    files = {}
    for file in sorted(weights.folder.glob("*.safetensors")):
        about = file.stat()
        files[file.name] = [about.st_size, about.st_mtime_ns]
    return {"kind": "safetensors", "folder": str(weights.folder), "files": files, **cut}


def load_stored(
    config: RunConfig, *, runs: bool = True
) -> tuple[Model, Hardware, CompiledModel, Images]:
    """Read an artifact. Raises ArtifactError if it is corrupt, stale or made with other options.

    The embedding is checked only if it will be used: not with `runs` False.
    """
    folder = Path(config.model)
    manifest = read_manifest(folder)
    hardware = _hardware(config, folder, manifest)
    compiled, _ = read_artifact(folder, hardware, manifest)
    _check_options(config, folder, manifest)
    weights = _weights(config, folder, manifest, compiled.config)
    if runs and config.executor != "timing":
        _check_embedding(folder, manifest.table("weights"), weights)
    model = Model(
        config=compiled.config, weights_ref=weights, folder=folder, notices=cut_notice(weights)
    )
    files = manifest.table("files")
    digests = {name: files.table(name).text("sha256", HEX) for name in files.names()}
    return model, hardware, compiled, Images(folder=folder.absolute(), digests=digests)


def _hardware(config: RunConfig, folder: Path, manifest: Table) -> Hardware:
    """Return the machine asked for, else the artifact's own. Refuses one that has changed."""
    stored = manifest.table("machine")
    made = stored.text("profile")
    profile = config.hardware if config.asked("hardware") else made
    try:
        hardware = load_hardware(profile)
    except ProfileError as error:
        raise ArtifactError(f"{folder}: it was made for {made}: {error}") from None
    was, now = manifest.raw("machine"), hardware.to_dict()
    for key in ("profile", "name"):
        was, now = {**was, key: ""}, {**now, key: ""}
    if difference := _difference("", was, now):
        raise ArtifactError(f"{folder}: stale: profile {profile}: {difference}")
    return hardware


def _difference(key: str, was: object, now: object) -> str | None:
    """Return a text that names the first changed value, None if there is none."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name in {**was, **now}:
            inner = f"{key}.{name if name.isprintable() else ascii(name):.80}".removeprefix(".")
            if found := _difference(inner, was.get(name), now.get(name)):
                return found
        return None
    if isinstance(now, tuple):
        now = [list(item) if isinstance(item, tuple) else item for item in now]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, pair in enumerate(zip(was, now, strict=True)):
            if found := _difference(f"{key}.{number}", *pair):
                return found
        return None
    if type(was) is type(now) and was == now:
        return None
    return f"{key}: it was made with {shown(was)}, now it is {shown(now)}"


def _check_options(config: RunConfig, folder: Path, manifest: Table) -> None:
    """Refuse options that equal neither those asked for at its making nor their results."""
    made = manifest.table("config")
    for name in OPTIONS:
        wanted = getattr(config, name)
        if not config.asked(name):
            continue
        came = made.raw(name) if name in ONLY_ASKED else manifest.raw(name)
        if wanted not in (made.raw(name), came):
            got = str(made.raw(name))[:80]
            raise ArtifactError(f"{folder}: {name}: wanted {wanted}, it was made with {got}")


def _weights(config: RunConfig, folder: Path, manifest: Table, model: ModelConfig) -> WeightsRef:
    entry = manifest.table("weights")
    kind = entry.choice("kind", [str(kind.value) for kind in WeightsKind])
    asked = config.weights if config.asked("weights") else None
    if kind == WeightsKind.SYNTHETIC.value:
        entry.only("kind", "seed", "repeat", "of_layers")
        if (repeat := "repeat" in entry.names()) and entry.raw("repeat") is not True:
            entry.refuse("repeat", "true or nothing", entry.raw("repeat"))
        if asked is not None and not (repeat and asked == REPEAT):
            got = f"it was made with synthetic ones{' that repeat' if repeat else ''}"
            raise ArtifactError(f"{folder}: weights: wanted {asked}, {got}")
        seed = entry.integer("seed", most=(1 << 64) - 1)
        weights = WeightsRef.synthetic(model, seed, repeat=repeat)
    else:
        entry.only("kind", "folder", "files", "embedding", "of_layers")
        weights = WeightsRef.from_folder(model, asked or entry.text("folder"))
    if "of_layers" in entry.names():
        weights = replace(weights, of_layers=entry.integer("of_layers", model.num_layers + 1))
    now = _weights_files(weights)
    for key in now:
        if key != "folder" and now[key] != entry.raw(key):
            raise ArtifactError(
                f"{folder}: stale: the weights in {weights.folder} are not those it was made from: "
                f"wanted {shown(entry.raw(key))}, got {shown(now[key])}"
            )
    return weights


def _check_embedding(folder: Path, entry: Table, weights: WeightsRef) -> None:
    digest, names = _embedding_digest(weights), " + ".join(embeddings(weights.config))
    if digest is not None and digest != (stored := entry.text("embedding", HEX)):
        raise ArtifactError(
            f"{folder}: stale: {names} in {weights.folder} is not the one it was made from: "
            f"wanted SHA-256 {stored}, got {digest}"
        )
