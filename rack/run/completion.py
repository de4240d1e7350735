"""A completion: its steps, its tokens and its account of both clocks. It runs nothing itself.

Who runs it (rack/run/sequences.py) asks for the step that it wants, tells it when that begins, and
gives it the result.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.pipeline import CompiledModel
from rack.run.answer_lengths import AnswerLengths
from rack.run.dispatch import Wanted
from rack.run.steps import Recovery, StepResult
from rack.text.constrain import Constraint
from rack.text.sampler import SamplingParams, sample, uniform
from rack.text.tokenizer import Tokenizer

HURRY = 512
"""A constrained text of random tokens is ended after so many, or after half of its limit."""


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

    def __init__(
        self, picker: Picker, prompt: Sequence[int], params: SamplingParams,
        alone: Callable[[Completion], Iterator[TokenEvent]],
    ) -> None:  # fmt: skip
        self.prompt_token_ids = list(prompt)
        self.params = params
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.prompt_cycles = 0
        self.decode_cycles: list[int] = []
        self.waited_cycles = 0  # of these: while steps of other sequences held the rack
        self.reused_tokens = 0  # of the prompt: found in the cache
        self.recoveries: list[Recovery] = []  # of the rack, meanwhile
        self.schedule_hash = picker.compiled.schedule_hash  # of what has run it, at the end
        self.wall_prefill_seconds = 0.0
        self.wall_decode_seconds: list[float] = []
        self._digest = hashlib.sha256()
        self._has_data = False
        self._picker = picker
        self._constraint: Constraint | None = None
        if params.grammar is not None:
            self._constraint = Constraint(picker.tokenizer, params.grammar)
        self._limit = picker.max_tokens(len(self.prompt_token_ids), params)
        self._end = picker.natural_end(self.prompt_token_ids, params)  # where no data says it
        self._stream = picker.tokenizer.stream(self.prompt_token_ids)
        self._scanner = StopScanner(params.stop)
        self._filled = 0  # prompt tokens whose step has begun
        self._begun = False
        self._since = 0  # the cycle up to which it is accounted
        self._seconds = 0.0  # the same by the wall clock
        self._events = alone(self)

    def __iter__(self) -> Iterator[TokenEvent]:
        return self._events

    def run(self) -> Completion:
        """Run to the end."""
        for _ in self._events:
            pass
        return self

    # -- for who runs it (rack/run/sequences.py)

    def enter(self, cycle: int, reused: int) -> None:
        """Begin at a cycle, with so many of the prompt's first tokens in the cache."""
        self._since, self._seconds = cycle, time.perf_counter()
        self._filled = self.reused_tokens = reused

    def wanted(self, slot: int, ready: int) -> Wanted:
        """Return the next step, which may begin from a cycle on: a chunk of the prompt, or a token.

        The prompt's last token is a decode step's.
        """
        rest = len(self.prompt_token_ids) - 1 - self._filled
        if rest:
            rows = min(rest, self._picker.compiled.prefill_chunk)
            return Wanted(
                slot=slot, ready=ready, rows=rows, context=self._filled + rows, decode=False,
                starting=True,
            )  # fmt: skip
        return Wanted(
            slot=slot, ready=ready, rows=1, context=self._position + 1, decode=True,
            starting=not self._begun,
        )  # fmt: skip

    @property
    def _position(self) -> int:
        return len(self.prompt_token_ids) + len(self.token_ids) - 1

    @property
    def cached(self) -> list[int]:
        """The tokens whose keys and values are in the cache, once the steps begun are over."""
        if self._filled < len(self.prompt_token_ids) - 1 or not self.token_ids:
            return self.prompt_token_ids[: self._filled]
        return [*self.prompt_token_ids, *self.token_ids[:-1]]

    @property
    def cached_tokens(self) -> int:
        """How many these are."""
        if self._filled < len(self.prompt_token_ids) - 1 or not self.token_ids:
            return self._filled
        return len(self.prompt_token_ids) + len(self.token_ids) - 1

    def begin(self, wanted: Wanted, base: int, end: int) -> Sequence[tuple[int, int]]:
        """Take note that the wanted step begins; return its (position, token) pairs."""
        self.waited_cycles += base - wanted.ready
        self._begun = True
        if wanted.decode:
            last = self.token_ids[-1] if self.token_ids else self.prompt_token_ids[-1]
            return [(self._position, last)]
        first, self._filled = self._filled, wanted.context
        if self._filled == len(self.prompt_token_ids) - 1:
            self.prompt_cycles, self._since = end - self._since, end
        return list(enumerate(self.prompt_token_ids[first : self._filled], first))

    def prefilled(self) -> None:
        """Take note that a chunk's step is over."""
        now = time.perf_counter()
        self.wall_prefill_seconds += now - self._seconds
        self._seconds = now

    def take(self, result: StepResult, end: int) -> TokenEvent:
        """Sample a token from a decode step that ended at a cycle."""
        self.decode_cycles.append(end - self._since)
        self._since = end
        token = self._pick(result)
        now = time.perf_counter()
        self.wall_decode_seconds.append(now - self._seconds)
        self._seconds = now
        scanner = self._scanner
        ends = self._picker.tokenizer.is_eos(token)
        text = "" if ends else scanner.feed(self._stream.feed(token))
        self.finish_reason = self._finished(token, scanner.hit)
        if self.finish_reason is not None:
            text += scanner.feed(self._stream.flush()) + scanner.flush()
        self.text += text
        return TokenEvent(
            token_id=token, text=text, emulated_cycles=self.decode_cycles[-1],
            finish_reason=self.finish_reason,
        )  # fmt: skip

    def _pick(self, result: StepResult) -> int:
        position, constraint = self._position, self._constraint
        picked = self._picker.pick(
            result, self.params, position, len(self.token_ids), constraint
        )  # fmt: skip
        if constraint is not None:
            constraint.accept(picked)
        if result.logits is not None or result.top is not None:
            self._has_data = True
            self._digest.update(struct.pack("<Q", result.hash_share))
        self.token_ids.append(picked)
        return picked

    def _finished(self, token: int, stopped: bool) -> str | None:
        count, params = len(self.token_ids), self.params
        ended = self._picker.tokenizer.is_eos(token) and not params.ignore_eos
        complete = self._constraint is not None and self._constraint.done
        ended |= self._end is not None and count >= self._end
        if stopped or complete or (ended and count >= params.min_tokens):
            return "stop"
        return "length" if count >= self._limit else None

    # -- totals

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
    def clock_hz(self) -> float:
        """Cycles in an emulated second."""
        return self._picker.compiled.chip.clock_hz

    @property
    def prompt_seconds(self) -> float:
        """Emulated seconds of prefill."""
        return self.prompt_cycles / self.clock_hz

    @property
    def completion_seconds(self) -> float:
        """Emulated seconds of all decode steps."""
        return sum(self.decode_cycles) / self.clock_hz


class Picker:
    """Draws tokens from what steps gave, and says when there are enough.

    `answers` gives the lengths of the timing executor's answers; None: they have no end.
    """

    def __init__(
        self, compiled: CompiledModel, tokenizer: Tokenizer, answers: AnswerLengths | None
    ) -> None:
        self.compiled, self.tokenizer, self._answers = compiled, tokenizer, answers

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
