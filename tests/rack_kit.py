"""Parts of a rack to test with: one tiny compiled model, and a rack that says what it is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from schedules import compiled

from compiler.model.presets import PRESETS
from compiler.pipeline import CompiledModel
from rack.run.engine import Engine
from rack.run.steps import StepOrder, StepResult
from rack.text.tokenizer import Tokenizer, load_tokenizer

TINY = PRESETS["tiny"]
BOS, EOS = 256, 257


def tokenizer() -> Tokenizer:
    """The byte tokenizer of `tiny`."""
    return load_tokenizer(None, TINY.vocab_size, TINY.bos_token_id, TINY.eos_token_ids)


class ScriptRack:
    """Implements `rack.run.steps.Rack`: every decode step's logits favour the script's next token.

    The second best is the token after it. Steps are recorded as (name, positions, tokens).
    """

    transport, executor = "script", "fast"

    def __init__(self, script: Sequence[int], model: CompiledModel | None = None) -> None:
        self.compiled = model or compiled()
        self.script = list(script)
        self.steps: list[tuple[str, list[int], list[int]]] = []
        self.resets = 0
        self._said = 0
        self._under_way: list[StepOrder] = []

    def reset(self) -> None:
        self.resets, self._said = self.resets + 1, 0
        self._under_way.clear()

    def start(self, order: StepOrder) -> None:
        self.steps.append((order.name, list(order.positions), list(order.tokens)))
        self._under_way.append(order)

    def finish(self) -> list[StepResult]:
        order = self._under_way.pop(0)
        schedule = self.compiled.steps[order.name]
        if not schedule.kind.decode:
            return [StepResult(cycles=schedule.cycles)]
        return [self._result(schedule.cycles) for _ in order.positions]

    def _result(self, cycles: int) -> StepResult:
        logits = np.zeros(TINY.vocab_size, np.float32)
        token = self.script[self._said % len(self.script)]
        logits[token], logits[(token + 1) % len(logits)] = 8.0, 4.0
        self._said += 1
        top = self.compiled.top_k
        if not top:
            return StepResult(cycles=cycles, logits=logits, hash_share=token)
        ids = np.argsort(-logits, kind="stable")[:top]
        return StepResult(cycles=cycles, top=(ids, logits[ids]), hash_share=token)

    def saturated(self) -> int:
        return 0

    def corrected_vectors(self) -> dict[str, int]:
        return {}

    def check(self) -> None:
        """No chip to die."""

    def close(self) -> None:
        """Nothing to give back."""


def scripted(script: Sequence[int], model: CompiledModel | None = None) -> Engine:
    """An engine whose rack says `script`, over and over."""
    return Engine(ScriptRack(script, model), tokenizer())


def saying(text: str) -> list[int]:
    """The byte tokenizer's ids of a text, without BOS."""
    return list(text.encode())


def known(folder: Path) -> list[dict[str, Any]]:
    """The nine continuations that fp16 keeps to the last token (models/README.md)."""
    entries: list[dict[str, Any]] = json.loads((folder / "greedy.json").read_text())[:9]
    return entries


def refused(capsys: pytest.CaptureFixture[str], code: int, run: Any, *argv: str) -> str:
    """Run a command that must fail with `code`; gives its one line of error."""
    try:
        got = run(list(argv))
    except SystemExit as exit_:
        got = exit_.code
    out, err = capsys.readouterr()
    assert (got, out) == (code, ""), err
    assert "Traceback" not in err
    line = err.strip().splitlines()[-1]
    if code == 1:
        assert err.strip() == line, f"more than one line: {err}"
        assert line.startswith("error: ")
    return line.partition("error: ")[2]
