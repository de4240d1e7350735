"""What fewer bits cost: likelihood of texts and error of logits, by type of weights.

A model folder brings what it is held against: `greedy.json`, texts as token ids, or `golden.npz`,
token ids and the logits that transformers gives in fp32. Everything runs on one chip of `lesson`;
no layout changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.checked import parse_json
from compiler.files import shown
from compiler.model.frontend import Model, resolve_model
from compiler.pipeline import Options, compile_model
from compiler.place.layout import Layout
from rack.errors import ConfigError
from rack.machines.profile import load_hardware
from rack.run.local import LocalRack

TEXTS, GOLDEN = "greedy.json", "golden.npz"
WAYS: tuple[tuple[str, int | None], ...] = (
    ("fp16", None), ("int8", None), ("int4", 320), ("int4", 160), ("int4", 64), ("int4", 32),
)  # fmt: skip
"""(dtype, group of int4 weights), the first being what the others' texts are held against."""

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a model is held against: sequences of tokens, and of a golden one their logits."""

    model: Model
    sequences: tuple[tuple[int, ...], ...]
    logits: F32 | None = None  # [tokens, vocabulary], of the only sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One type's cost: mean negative log-likelihood, or the RMS of logits' errors over theirs."""

    model: str
    dtype: str
    group: int | None
    tokens: int
    nll: float | None = None
    logit_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)

    @property
    def way(self) -> str:
        """The type in words."""
        return self.dtype if self.group is None else f"{self.dtype}, a scale for {self.group} rows"


def held(folder: Path) -> Held:
    """Return what a folder's model is held against. Raises ConfigError without texts or logits."""
    model = resolve_model(str(folder))
    if (folder / TEXTS).exists():
        return Held(model=model, sequences=_texts(folder / TEXTS))
    if (folder / GOLDEN).exists():
        with np.load(folder / GOLDEN) as golden:
            tokens, logits = golden["token_ids"], golden["logits"].astype(np.float32)
        return Held(model=model, sequences=(tuple(tokens.tolist()),), logits=logits)
    raise ConfigError(f"{folder}: wanted {TEXTS} or {GOLDEN} in it, got neither")


def _texts(path: Path) -> tuple[tuple[int, ...], ...]:
    texts = parse_json(str(path), path.read_bytes())
    try:
        found = tuple(tuple(map(int, text["token_ids"])) for text in texts)
    except (TypeError, ValueError, LookupError):
        found = ()
    if not found or min(map(len, found)) < 2:
        wanted = "a list of objects with token_ids, two or more each"
        raise ConfigError(f"{path}: wanted {wanted}, got {shown(texts)}")
    return found


def costs(
    against: Held, done: Callable[[int, int], None] = lambda made, of: None
) -> Iterator[Cost]:  # fmt: skip
    """Yield the cost of every type of weights. `done` is told how many sequences are run."""
    total = len(WAYS) * len(against.sequences)
    for number, (dtype, group) in enumerate(WAYS):
        found = []
        for logits in _logits(against, dtype, group):
            found.append(logits)
            done(number * len(against.sequences) + len(found), total)
        about = {"model": against.model.config.name, "dtype": dtype, "group": group}
        tokens = sum(map(len, against.sequences))
        if against.logits is not None:
            error = _rms(found[0] - against.logits) / _rms(against.logits)
            yield Cost(**about, tokens=tokens, logit_error=error)  # type: ignore[arg-type]
        else:
            each = map(mean_nll, found, against.sequences)
            yield Cost(**about, tokens=tokens, nll=float(np.mean(list(each))))  # type: ignore[arg-type]


def _logits(against: Held, dtype: str, group: int | None) -> Iterator[F32]:
    """Yield the logits after each token of each sequence, by decode steps alone."""
    model, longest = against.model, max(map(len, against.sequences))
    options = Options(
        dtype=dtype, int4_group=group, max_model_len=longest, prefill_chunk=1, buckets=(longest,)
    )
    compiled = compile_model(
        model.config, load_hardware("lesson"), Layout(stages=1, group=1), options, kinds="decode"
    )
    rack = LocalRack(compiled, model.weights_ref)
    for tokens in against.sequences:
        rack.reset()
        rows = []
        for position, token in enumerate(tokens):
            step = compiled.step(1, position + 1, decode=True)
            rows.append(rack.run_step(step.name, [position], [token]).logits)
        yield np.stack([row for row in rows if row is not None])
    rack.close()


def mean_nll(logits: F32, tokens: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of tokens 1.. given the logits of those before."""
    z = logits[:-1].astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return float(-log_p[np.arange(len(z)), list(tokens[1:])].mean())


def _rms(values: F32) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def markdown(rows: Sequence[Cost]) -> str:
    """Return the rows as a table; likelihoods beside those of the first type."""
    out = ["| model | weights | mean NLL | more than fp16 | error of logits (RMS) |",
           "|---|---|---|---|---|"]  # fmt: skip
    first = {row.model: row.nll for row in reversed(rows)}
    for row in rows:
        nll = more = error = ""
        if row.nll is not None:
            base = first[row.model]
            assert base is not None
            nll, more = f"{row.nll:.4f}", f"{row.nll / base - 1:+.2%}"
        if row.logit_error is not None:
            error = f"{row.logit_error:.2%}"
        out.append(f"| {row.model} | {row.way} | {nll} | {more} | {error} |")
    return "\n".join(out)
