"""`python -m rack.compile MODEL -o DIR`: write a compiled model with its SRAM images.

`rack.generate DIR` and `rack.serve DIR` then start from it. Tokenizer files are copied into it. The
embedding table stays with the weights, which must not change.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from chip.sram import Sram
from compiler.artifact import write_artifact
from compiler.files import is_file
from rack.commands.command import model_command, show_placement
from rack.commands.flags import model_flags, output_flags, verb_parser
from rack.run.config import RunConfig
from rack.run.job import chip_job, load_weights, reserve_tensors
from rack.run.session import Prepared, prepare
from rack.run.stored import machine_entry, weights_entry
from rack.system.output import check_folder, writing_folder
from rack.system.progress import StartProgress, say, start_progress
from rack.system.provenance import code_version
from rack.system.shell import put
from rack.text.tokenizer import tokenizer_files


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.compile`."""
    parser = verb_parser("compile", model_flags(), output_flags())
    group = parser.add_argument_group("files")
    group.add_argument("-o", "--output", required=True, metavar="DIR", help="new or empty folder")
    return parser


@model_command(build_parser)
def main(args: argparse.Namespace, config: RunConfig) -> None:
    """Write the artifact, or show its placement."""
    check_folder(args.output)
    if args.dry_run:
        show_placement(prepare(config, runs=False), as_json=args.json)
    else:
        _write(config, args.output, as_json=args.json)


def _write(config: RunConfig, output: str, *, as_json: bool) -> None:
    prepared = prepare(config)
    for notice in prepared.notices:
        say(notice)
    home = prepared.model.folder
    with writing_folder(output) as folder, start_progress() as progress:
        weights = prepared.model.weights_ref
        extra = {
            "weights": weights_entry(weights),
            "machine": machine_entry(config, prepared.hardware),
            "config": config.to_dict(),
        }
        files = []
        if home is not None:
            configs = [home / name for name in ("config.json", "generation_config.json")]
            files = [*filter(is_file, configs), *tokenizer_files(home)]
        named = {str(path.relative_to(home)): path for path in files} if home else {}
        write_artifact(folder, prepared.compiled, _images(prepared, progress), extra, named)
    compiled = prepared.compiled
    say(f"{output}: {compiled.layout.chips} chips, {compiled.schedule_hash}")
    if as_json:
        report = {
            "folder": output,
            "model": compiled.config.name,
            "layout": str(compiled.layout),
            "chips": compiled.layout.chips,
            "schedule_hash": compiled.schedule_hash,
            "weights": extra["weights"],
            "hardware": prepared.hardware.name,
            "hardware_digest": prepared.hardware.digest(),
            "config": extra["config"],
            "notices": prepared.notices,
            "code": code_version(),
        }
        put(json.dumps(report))


def _images(prepared: Prepared, progress: StartProgress) -> Iterator[tuple[int, list[memoryview]]]:
    """Yield each chip's constants, region by region, with one chip in memory at a time."""
    compiled = prepared.compiled
    source = prepared.model.weights_ref.open()
    for chip in range(compiled.layout.chips):
        sram = Sram(compiled.chip.sram_bytes)
        job = chip_job(compiled, chip, prepared.model.weights_ref)
        reserve_tensors(job, sram)
        load_weights(job, sram, source)
        yield chip, [sram.memory(*region) for region in compiled.memories[chip].constant_regions]
        sram.close()
        progress.report("images written", chip + 1, compiled.layout.chips)
