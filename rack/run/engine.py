"""The request engine: prefill, decode, sampling and stopping for one sequence at a time.

`Engine` is synchronous and does no I/O. `Engine.generate` returns a `Completion`; iterating over it
runs the rack, one step per token. Emulated time is the sum of the cycles that steps report; wall
time is kept apart, under other names.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compiler.pipeline import CompiledModel
from rack.errors import RackError, RequestError
from rack.run.answer_lengths import AnswerLengths
from rack.run.driver import StepResult
from rack.text.constrain import Constraint
from rack.text.sampler import SamplingParams, sample, uniform
from rack.text.tokenizer import Tokenizer

HURRY = 512
"""A constrained text of random tokens is ended after so many, or after half of its limit."""


class Rack(Protocol):
    """Something that runs compiled steps: LocalRack, ProcessRack, RayRack or TimingRack."""

    compiled: CompiledModel
    transport: str
    executor: str

    def reset(self) -> None: ...
    def run_step(
        self, name: str, positions: Sequence[int], tokens: Sequence[int],
        following: str | None = None,
    ) -> StepResult: ...  # fmt: skip
    def saturated(self) -> int: ...
    def times(self) -> dict[str, float]: ...
    def check(self) -> None: ...  # raises where a chip has died since the last step
    def close(self) -> None: ...


class EncoderRack(Rack, Protocol):
    """A rack that also runs the steps of encoders. `types`: the kind of each row's token."""

    def run_encode(
        self, name: str, positions: Sequence[int], tokens: Sequence[int], types: Sequence[int]
    ) -> StepResult: ...  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One completion token. `text` is the text that it made printable; it may be empty."""

    token_id: int
    text: str
    emulated_cycles: int
    finish_reason: str | None  # "stop" or "length" with the last token


class StopScanner:
    """Lets text through, but holds back a possible beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.hit = False
        self._held = ""

    def feed(self, text: str) -> str:
        """Take text; return the text to show. After a hit there is none."""
        if self.hit:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def flush(self) -> str:
        """Return the text held back, at the end."""
        shown, self._held = ("" if self.hit else self._held), ""
        return shown

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class Completion:
    """One request in progress: iterate for tokens, read the totals at any time.

    `prompt_cycles` and `decode_cycles` (one entry per token) are emulated; `wall_*` are seconds.
    """

    def __init__(self, engine: Engine, prompt: Sequence[int], params: SamplingParams) -> None:
        self.prompt_token_ids = list(prompt)
        self.params = params
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.prompt_cycles = 0
        self.decode_cycles: list[int] = []
        self.wall_prefill_seconds = 0.0
        self.wall_decode_seconds: list[float] = []
        self._digest = hashlib.sha256()
        self._has_data = False
        self._engine = engine
        self._constraint: Constraint | None = None
        self._end: int | None = None  # tokens, where no data says it
        self._events = self._run()

    def __iter__(self) -> Iterator[TokenEvent]:
        return self._events

    def run(self) -> Completion:
        """Run to the end."""
        for _ in self._events:
            pass
        return self

    @property
    def data_hash(self) -> str | None:
        """Return the SHA-256 of the hash sums of the sampled positions, then the token ids (law 5).

        None without data (timing executor).
        """
        if not self._has_data:
            return None
        digest = self._digest.copy()
        digest.update(np.asarray(self.token_ids, "<u4").tobytes())
        return digest.hexdigest()

    @property
    def prompt_seconds(self) -> float:
        """Emulated seconds of prefill."""
        return self.prompt_cycles / self._engine.clock_hz

    @property
    def completion_seconds(self) -> float:
        """Emulated seconds of all decode steps."""
        return sum(self.decode_cycles) / self._engine.clock_hz

    def _run(self) -> Iterator[TokenEvent]:
        engine, params = self._engine, self.params
        engine.running = self
        if params.grammar is not None:
            self._constraint = Constraint(engine.tokenizer, params.grammar)
        engine.rack.reset()
        self._prefill()
        limit = engine.max_tokens(len(self.prompt_token_ids), params)
        self._end = engine.natural_end(self.prompt_token_ids, params)
        stream, scanner = engine.tokenizer.stream(self.prompt_token_ids), StopScanner(params.stop)
        token = self.prompt_token_ids[-1]
        while self.finish_reason is None:
            token = self._decode(token)
            text = "" if engine.tokenizer.is_eos(token) else scanner.feed(stream.feed(token))
            self.finish_reason = self._finished(token, scanner.hit, limit)
            if self.finish_reason is not None:
                text += scanner.feed(stream.flush()) + scanner.flush()
            self.text += text
            yield TokenEvent(
                token_id=token, text=text, emulated_cycles=self.decode_cycles[-1],
                finish_reason=self.finish_reason,
            )  # fmt: skip

    def _finished(self, token: int, stopped: bool, limit: int) -> str | None:
        count, params = len(self.token_ids), self.params
        ended = self._engine.tokenizer.is_eos(token) and not params.ignore_eos
        complete = self._constraint is not None and self._constraint.done
        ended |= self._end is not None and count >= self._end
        if stopped or complete or (ended and count >= params.min_tokens):
            return "stop"
        return "length" if count >= limit else None

    def _prefill(self) -> None:
        engine, started = self._engine, time.perf_counter()
        tokens, chunk = self.prompt_token_ids[:-1], engine.compiled.prefill_chunk
        ends = [*range(chunk, len(tokens), chunk), len(tokens)] if tokens else []
        spans = list(zip([0, *ends], ends, strict=False))
        names = [engine.compiled.step(b - a, b, decode=False).name for a, b in spans]
        for (first, end), name, following in zip(spans, names, [*names[1:], None], strict=False):
            result = engine.rack.run_step(name, range(first, end), tokens[first:end], following)
            self.prompt_cycles += result.cycles
        self.wall_prefill_seconds = time.perf_counter() - started

    def _decode(self, token: int) -> int:
        engine, started = self._engine, time.perf_counter()
        if engine.running is not self:  # its cache rows are overwritten
            raise RackError("this completion was left: another one has started on its rack since")
        position = len(self.prompt_token_ids) + len(self.token_ids) - 1
        step = engine.compiled.step(1, position + 1, decode=True)
        result = engine.rack.run_step(step.name, [position], [token])
        self.decode_cycles.append(result.cycles)
        constraint = self._constraint
        picked = engine.pick(result, self.params, position, len(self.token_ids), constraint)
        if constraint is not None:
            constraint.accept(picked)
        if result.logits is not None or result.top is not None:
            self._has_data = True
            self._digest.update(struct.pack("<Q", result.hash_share))
        self.token_ids.append(picked)
        self.wall_decode_seconds.append(time.perf_counter() - started)
        return picked


def check_request(
    compiled: CompiledModel, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams,
    *, executor: str,
) -> None:  # fmt: skip
    """Check a request before anything runs. Raises RequestError if the rack cannot do it."""
    vocab, limit = compiled.config.vocab_size, compiled.max_model_len
    if not prompt:
        raise RequestError(param="prompt", wanted="at least one token", got="none")
    if len(prompt) >= limit:
        raise RequestError(
            param="prompt",
            wanted=f"fewer tokens than the context of {limit}",
            got=f"{len(prompt)} tokens",
        )
    bad = [token for token in prompt if not 0 <= token < vocab]
    if bad:
        raise RequestError(param="prompt", wanted=f"token ids below {vocab}", got=str(bad[0]))
    if compiled.top_k:
        _check_top_k(compiled.top_k, tokenizer, params)
    if params.grammar is not None and compiled.top_k and executor != "timing":
        raise RequestError(
            param=params.grammar.param, wanted="free text: this rack returns only some logits",
            got="a schema",
        )  # fmt: skip


def _check_top_k(top: int, tokenizer: Tokenizer, params: SamplingParams) -> None:
    """Refuse parameters that need more logits than the `top` largest, which this rack returns."""
    drawn = params.temperature > 0
    if drawn and not 0 < params.top_k <= top:
        raise RequestError(
            param="top_k", wanted=f"1 to {top}: this rack returns the {top} largest logits",
            got=str(params.top_k),
        )  # fmt: skip
    banned = len(tokenizer.eos_ids) if params.min_tokens and not params.ignore_eos else 0
    if (params.top_k if drawn else 1) + banned > top:
        raise RequestError(
            param="min_tokens",
            wanted=f"0: of the {top} largest logits that this rack returns too few are left "
            f"without {banned} ends of sequence",
            got=str(params.min_tokens),
        )


class Engine:
    """Runs completions on a rack, one after another.

    `answers` gives the lengths of the timing executor's answers; None: they have no end.
    """

    def __init__(
        self, rack: Rack, tokenizer: Tokenizer, answers: AnswerLengths | None = None
    ) -> None:
        self.rack, self.tokenizer, self._answers = rack, tokenizer, answers
        self.compiled = rack.compiled
        self.clock_hz = rack.compiled.chip.clock_hz
        self.running: Completion | None = None

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Completion:
        """Check a request and return it ready to run. Raises RequestError."""
        check_request(self.compiled, self.tokenizer, prompt, params, executor=self.rack.executor)
        return Completion(self, prompt, params)

    def max_tokens(self, prompt_tokens: int, params: SamplingParams) -> int:
        """Return the most tokens of a completion: as many as asked for, or as fit."""
        room = self.compiled.max_model_len - prompt_tokens
        return room if params.max_tokens is None else min(room, params.max_tokens)

    def natural_end(self, prompt: Sequence[int], params: SamplingParams) -> int | None:
        """Return the length at which a completion without data ends by itself, None for never."""
        if self._answers is None or params.ignore_eos or params.grammar is not None:
            return None
        return max(params.min_tokens, self._answers.of(prompt, params.seed))

    def pick(
        self, result: StepResult, params: SamplingParams, position: int, count: int,
        constraint: Constraint | None = None,
    ) -> int:  # fmt: skip
        """Sample from a result; without data, draw a token that shows as text of its own."""
        if result.top is not None:
            ids, logits = result.top
        elif result.logits is not None:
            logits = result.logits
            ids = np.arange(len(logits))
            if params.temperature == 0.0 and count >= params.min_tokens and constraint is None:
                return int(logits.argmax())  # ties to the lowest id, as `sample` has it
        elif constraint is not None:
            limit = self.max_tokens(position + 1 - count, params)
            return constraint.draw(params.seed, position, hurry=count >= min(limit // 2, HURRY))
        else:
            return self._any_token(params.seed, position)
        if count < params.min_tokens and not params.ignore_eos:
            allowed = np.array([not self.tokenizer.is_eos(int(token)) for token in ids])
            ids, logits = ids[allowed], logits[allowed]
        if constraint is not None:
            allowed = constraint.allowed()
            ids, logits = ids[allowed], logits[allowed]
        return sample(ids, logits, params, position)

    def _any_token(self, seed: int, position: int) -> int:
        plain, vocab = self.tokenizer.plain_ids, self.compiled.config.vocab_size
        if plain:
            return plain[int(uniform(seed, position) * len(plain))]
        token = int(uniform(seed, position) * vocab)
        while self.tokenizer.is_eos(token):
            token = (token + 1) % vocab
        return token
