"""A context that is too small: the error says what makes it larger, and that is true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compiler.errors import CapacityError
from rack.commands.generate import main
from rack.errors import RequestError
from rack.run.config import RunConfig
from rack.run.context import check_room, context_advice
from rack.run.session import Prepared, prepare
from rack.run.stored import Images

SMALL = """name = "small"
inherits = "lesson"
[chip]
sram_bytes = { value = 5632000, source = "assumption: for a test" }
"""


def prepared(**options: object) -> Prepared:
    asked = {"model": "tiny", "layout": "1x1", "executor": "timing", **options}
    return prepare(RunConfig(**asked))  # type: ignore[arg-type]


def test_the_model_s_own_positions() -> None:
    assert context_advice(prepared()) == "tiny has no more positions"


def test_the_flag_raises_it() -> None:
    ready = prepared(max_model_len=64)
    assert context_advice(ready) == "--max-model-len raises it, up to 256 with 1x1 on lesson"
    assert prepared(max_model_len=256).compiled.max_model_len == 256
    with pytest.raises(RequestError) as caught:
        check_room(ready, 64)
    assert str(caught.value) == (
        "prompt: wanted fewer tokens than the context of 64 "
        "(--max-model-len raises it, up to 256 with 1x1 on lesson), got 64 tokens"
    )
    check_room(ready, 63)


def test_what_fits_ends_it(tmp_path: Path) -> None:
    """Where the chips are full, more of them or more SRAM is what helps."""
    small = tmp_path / "small.toml"
    small.write_text(SMALL)
    ready = prepared(hardware=str(small))
    now = ready.compiled.max_model_len
    assert now < 256
    assert context_advice(ready) == (
        "it is the largest that fits 1x1 on small: a --layout with more chips raises it, and so "
        "does --hardware with more SRAM"
    )
    with pytest.raises(CapacityError):
        prepared(hardware=str(small), max_model_len=256)
    assert prepared(hardware=str(small), layout="1x2").compiled.max_model_len > now
    auto = replace(ready, config=replace(ready.config, layout="auto"))
    assert "--max-model-len up to 256 takes a layout with more chips" in context_advice(auto)
    larger = prepared(hardware=str(small), layout="auto", max_model_len=256).compiled
    assert (larger.layout.chips > 1, larger.max_model_len) == (True, 256)


def test_an_artifact_is_compiled_again(tmp_path: Path) -> None:
    ready = prepared(max_model_len=64)
    stored = replace(ready, images=Images(folder=tmp_path, digests={}))
    wanted = "an artifact compiled with a larger --max-model-len raises it"
    assert context_advice(stored) == wanted


def test_generate_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["tiny", "--layout", "1x1", "--executor", "timing", "--max-model-len", "32"]
    assert main([*flags, "--prompt", "x" * 40]) == 1
    wanted = "fewer tokens than the context of 32 (--max-model-len raises it, up to 256 with 1x1"
    assert wanted in capsys.readouterr().err.splitlines()[-1]
