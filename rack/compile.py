"""`python -m rack.compile MODEL -o DIR`: write a compiled model with its SRAM images.

`rack.generate DIR` and `rack.serve DIR` then start from it. Tokenizer files are copied in; the
embedding table stays where the weights are, and they must not have changed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from chip.sram import Sram
from compiler.artifact import write_artifact
from compiler.files import is_file
from rack.config import RunConfig, add_flags, parse
from rack.job import chip_job, load_weights, reserve_tensors
from rack.progress import StartProgress, say, start_progress
from rack.session import KNOWN_ERRORS, Prepared, prepare
from rack.stored import weights_entry
from rack.tokenizer import tokenizer_files


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `rack.compile`."""
    parser = argparse.ArgumentParser(
        prog="python -m rack.compile",
        description="Compile a model and write it with one SRAM image per chip.",
    )
    add_flags(parser)
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="new or empty folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 refused, 2 bad usage."""
    args, config = parse(build_parser(), argv)
    try:
        return _run(config, Path(args.output))
    except KNOWN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(config: RunConfig, folder: Path) -> int:
    prepared = prepare(config)
    for notice in prepared.notices:
        say(notice)
    with start_progress() as progress:
        weights = prepared.model.weights_ref
        extra = {
            "weights": weights_entry(weights),
            "hardware": prepared.hardware.name,
            "hardware_digest": prepared.hardware.digest(),
            "config": config.to_dict(),
        }
        write_artifact(folder, prepared.compiled, _images(prepared, progress), extra)
    if prepared.model.folder is not None:
        home = prepared.model.folder
        configs = [home / name for name in ("config.json", "generation_config.json")]
        for path in [*filter(is_file, configs), *tokenizer_files(home)]:
            copy = folder / path.relative_to(home)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    say(f"{folder}: {prepared.compiled.layout.chips} chips, {prepared.compiled.schedule_hash}")
    return 0


def _images(prepared: Prepared, progress: StartProgress) -> Iterator[tuple[int, list[memoryview]]]:
    """Each chip's constants, region by region, one chip in memory at a time."""
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


if __name__ == "__main__":
    sys.exit(main())
