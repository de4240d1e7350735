"""A compiled model as a folder: manifest, schedules, one SRAM image per chip.

    manifest.json        versions, hashes, resolved configuration, where the weights came from
    schedules.msgpack    links, memories, every step
    chip_0000.bin …      the constants of each chip's SRAM: weights, then scales and norms

Written once into a temporary name and moved into place; read back with every file's SHA-256
checked (images when a chip loads them). What does not match is refused by file name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack

from chip.program import Operation, Program
from chip.spec import ChipSpec
from compiler.errors import ArtifactError
from compiler.files import is_file
from compiler.graph import build_graph
from compiler.ir import (
    HostMemory,
    LinkUse,
    Memory,
    ScheduledTransfer,
    StepKind,
    StepSchedule,
    Tensor,
)
from compiler.layout import parse_layout
from compiler.model_config import ModelConfig
from compiler.network import Network
from compiler.partition import partition
from compiler.pipeline import FORMAT_VERSION, CompiledModel, schedule_digest
from interconnect.clock import ClockSpec, SyncHop

MANIFEST, SCHEDULES = "manifest.json", "schedules.msgpack"
READ_BYTES = 1 << 24


def image_name(chip: int) -> str:
    """Return the file name of a chip's SRAM image."""
    return f"chip_{chip:04}.bin"


def is_artifact(folder: Path) -> bool:
    """Say whether a folder is an artifact rather than a model."""
    return is_file(folder / MANIFEST)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_artifact(
    folder: Path,
    compiled: CompiledModel,
    images: Iterable[tuple[int, Sequence[memoryview]]],
    extra: Mapping[str, Any],
) -> None:
    """Write everything; `images` gives (chip, its regions of constants) one after another.

    `extra` is kept in the manifest as it is. Raises ArtifactError where the folder is in use.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ArtifactError(f"{folder}: wanted an empty or new folder, got one with files")
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    for chip, image in images:
        path = folder / image_name(chip)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for region in image:
                file.write(region)
                digest.update(region)
        digests[path.name] = digest.hexdigest()
    (folder / SCHEDULES).write_bytes(msgpack.packb(_schedules(compiled)))
    digests[SCHEDULES] = file_digest(folder / SCHEDULES)
    manifest = {
        "format_version": FORMAT_VERSION,
        "schedule_hash": compiled.schedule_hash,
        "model": compiled.config.to_dict(),
        "chip": asdict(compiled.chip),
        "target": compiled.target_name,
        "layout": str(compiled.layout),
        "dtype": compiled.dtype,
        "max_model_len": compiled.max_model_len,
        "prefill_chunk": compiled.prefill_chunk,
        "buckets": list(compiled.buckets),
        "top_k": compiled.top_k,
        "binding": list(compiled.network.binding),
        "files": digests,
        **extra,
    }
    temporary = folder / (MANIFEST + ".part")  # a folder without a manifest is no artifact
    temporary.write_text(json.dumps(manifest, indent=1))
    temporary.rename(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest. Raises ArtifactError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder}: wanted an artifact (rack.compile makes one), got no {MANIFEST} there"
        ) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: wanted a manifest, got {error}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(f"{path}: wanted format version {FORMAT_VERSION}, got {version}")
    return dict(manifest)


def check_file(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Return a file of the artifact whose SHA-256 is what the manifest says."""
    path, wanted = folder / name, manifest["files"].get(name)
    if wanted is None or not path.is_file():
        raise ArtifactError(f"{path}: wanted a file of the artifact, got nothing")
    got = file_digest(path)
    if got != wanted:
        raise ArtifactError(f"{path}: corrupt: wanted SHA-256 {wanted}, got {got}")
    return path


def read_artifact(folder: Path) -> tuple[CompiledModel, dict[str, Any]]:
    """Rebuild the compiled model, and give the manifest. Raises ArtifactError.

    The schedule's hash is worked out again from what was read, and must be the manifest's.
    """
    manifest = read_manifest(folder)
    path = check_file(folder, manifest, SCHEDULES)
    data = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    config = ModelConfig.from_dict(manifest["model"])
    layout = parse_layout(manifest["layout"])
    links = tuple(LinkUse.from_list(item) for item in data["links"])
    network = Network(
        links=links,
        routes={(src, tuple(dst)): tuple(way) for src, dst, way in data["routes"]},
        binding=tuple(manifest["binding"]),
        ports_in_use=data["ports_in_use"],
        clock=ClockSpec(**data["clock"]),
        sync=tuple(
            tuple(SyncHop(slot, latency) for slot, latency in path) for path in data["sync"]
        ),
    )
    steps = [_step(item) for item in data["steps"]]
    compiled = CompiledModel(
        config=config,
        target_name=manifest["target"],
        chip=ChipSpec(**manifest["chip"]),
        layout=layout,
        dtype=manifest["dtype"],
        max_model_len=manifest["max_model_len"],
        prefill_chunk=manifest["prefill_chunk"],
        buckets=tuple(manifest["buckets"]),
        top_k=manifest["top_k"],
        partition=partition(build_graph(config), layout),
        network=network,
        memories=tuple(_memory(item) for item in data["memories"]),
        steps={step.name: step for step in steps},
        schedule_hash=manifest["schedule_hash"],
    )
    digest = schedule_digest(compiled)
    if digest != compiled.schedule_hash:
        raise ArtifactError(
            f"{folder / MANIFEST}: stale: wanted schedule_hash {compiled.schedule_hash}, "
            f"the schedules give {digest}"
        )
    return compiled, manifest


def _schedules(compiled: CompiledModel) -> dict[str, Any]:
    network = compiled.network
    return {
        "links": [link.to_list() for link in network.links],
        "routes": [[src, list(dst), list(way)] for (src, dst), way in network.routes.items()],
        "ports_in_use": network.ports_in_use,
        "clock": asdict(network.clock),
        "sync": [[[hop.slot, hop.latency_cycles] for hop in path] for path in network.sync],
        "memories": [
            {**asdict(memory), "tensors": [asdict(tensor) for tensor in memory.tensors]}
            for memory in compiled.memories
        ],
        "steps": [
            {
                "kind": asdict(step.kind),
                "host": asdict(step.host),
                "cycles": step.cycles,
                "transfers": [transfer.to_list() for transfer in step.transfers],
                "programs": [
                    [operation.to_list() for operation in program.operations]
                    for program in step.programs
                ],
                "realign": [program.realign for program in step.programs],
            }
            for step in compiled.steps.values()
        ],
    }


def _memory(data: dict[str, Any]) -> Memory:
    tensors = tuple(Tensor(**tensor) for tensor in data.pop("tensors"))
    return Memory(tensors=tensors, **data)


def _step(data: dict[str, Any]) -> StepSchedule:
    kind = StepKind(**data["kind"])
    programs = tuple(
        Program(
            chip=chip,
            step=kind.name,
            rows=kind.rows,
            operations=tuple(Operation.from_list(item) for item in operations),
            realign=tuple((begin, end) for begin, end in realign),
        )
        for chip, (operations, realign) in enumerate(
            zip(data["programs"], data["realign"], strict=True)
        )
    )
    return StepSchedule(
        kind=kind,
        programs=programs,
        transfers=tuple(ScheduledTransfer.from_list(item) for item in data["transfers"]),
        host=HostMemory(**data["host"]),
        cycles=data["cycles"],
    )
