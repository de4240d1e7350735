"""Constrained decoding: only tokens that continue a text which a grammar describes.

llguidance works out, before each token is sampled, which tokens the grammar allows; the host then
samples among those. The logits that the rack returned, and so `data_hash`'s share of them, are not
touched, and no step is skipped: a forced token costs its decode step like any other. Without
logits (timing executor) tokens are drawn at random among those allowed, as `closing` has it.

A grammar may cost far more than its text suggests. What a stranger sends goes through
`judge` first; here the work of a token and of an answer is bounded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import llguidance
import numpy as np
from numpy.typing import NDArray

from rack.errors import RequestError
from rack.text.closing import Closing, Spelling
from rack.text.grammar import Grammar, inexact
from rack.text.sampler import uniform
from rack.text.tokenizer import Tokenizer

MASK_SECONDS = 20.0
"""CPU time that finding out which tokens may come may take in one answer."""

# The library's own bounds hold for one token (about 15 ms); states take one or two KiB each.
_LIMITS = llguidance.LLParserLimits(max_lexer_states=30_000, verbose_errors=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What a tokenizer's tokens spell, in a form that can be sent to another process."""

    vocabulary: str | list[bytes]  # the contents of tokenizer.json, or each token's bytes
    size: int
    bos: int | None
    eos: tuple[int, ...]

    @staticmethod
    def of(tokenizer: Tokenizer) -> Words:
        """Return a tokenizer's."""
        return Words(
            vocabulary=tokenizer.vocabulary(), size=tokenizer.vocab_size, bos=tokenizer.bos_id,
            eos=tuple(sorted(tokenizer.eos_ids)),
        )  # fmt: skip

    def table(self) -> llguidance.LLTokenizer:
        """Return them sorted for look-up; takes a second for 128k tokens. Raises ValueError."""
        eos = list(self.eos)
        if not eos:
            raise ValueError("this model has no end of sequence")
        try:
            if isinstance(self.vocabulary, str):
                return llguidance.LLTokenizer(self.vocabulary, n_vocab=self.size, eos_token=eos)
            words = llguidance.TokenizerWrapper(_List(self.vocabulary, self.bos, eos[0]))
            return llguidance.LLTokenizer(words, n_vocab=self.size, eos_token=eos)
        except ValueError as error:
            raise ValueError(
                f"this model's tokenizer has no bytes for its tokens: {_one_line(error)}"
            ) from None


class _List:
    """A list of tokens in the form that llguidance takes."""

    def __init__(self, tokens: list[bytes], bos: int | None, eos: int) -> None:
        self.eos_token_id, self.bos_token_id = eos, bos
        self.tokens = tokens
        self.special_token_ids = [i for i, token in enumerate(tokens) if not token]

    def __call__(self, text: bytes) -> list[int]:
        """Give the ids of a text: any that spell it."""
        return list(text)


_PLAINLY = {"NoExtensionBias": "a schema that no value meets", "<non-verbose/>": ""}
_MOST_SAID = 300


def _one_line(text: object) -> str:
    """Return what the library says in a line that can be shown."""
    lines = (_PLAINLY.get(line.strip(), line.strip()) for line in str(text).splitlines())
    return "; ".join(filter(None, lines))[:_MOST_SAID]


@lru_cache(maxsize=4)
def _table(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    return Words.of(tokenizer).table()


@lru_cache(maxsize=4)
def _spelling(tokenizer: Tokenizer) -> Spelling:
    table, pool, token_of = _table(tokenizer), list[int](), dict[int, int]()
    for token in range(tokenizer.vocab_size):
        spelled = table.decode_bytes([token])
        if spelled and not table.is_special_token(token):
            pool.append(token)
            if len(spelled) == 1:
                token_of.setdefault(spelled[0], token)
    return Spelling(
        pool=pool, token_of=token_of, eos=tuple(sorted(tokenizer.eos_ids)),
        bytes_of=lambda token: table.decode_bytes([token]),
    )  # fmt: skip


def refusal(table: llguidance.LLTokenizer, grammar: Grammar, begin: Callable[[int], None]) -> str:
    """Return why no answer can meet a grammar, "" if one can.

    `begin` is called with each part's number before that part, then with the number of parts.
    """
    for number, part in enumerate(grammar.parts):
        begin(number)
        try:
            alone = llguidance.LLMatcher.grammar_from_json_schema(part.schema)
            error = inexact(json.loads(part.schema)) or llguidance.LLMatcher.validate_grammar(
                alone, limits=_LIMITS
            )
        except ValueError as found:
            error = str(found)
        if error:
            return _one_line(error)
    begin(len(grammar.parts))
    matcher = llguidance.LLMatcher(table, grammar.text, limits=_LIMITS, log_level=0)
    matcher.compute_bitmask()
    return _one_line(matcher.get_error())


@lru_cache(maxsize=16)
def compiled(tokenizer: Tokenizer, grammar: Grammar) -> llguidance.LLMatcher:
    """Return a grammar at its beginning, to be copied. Raises RequestError."""
    try:
        table = _table(tokenizer)
    except ValueError as error:
        wanted = '{"type": "text"}' if grammar.param == "response_format" else "none"
        raise RequestError(param=grammar.param, wanted=wanted, got=str(error)) from None
    matcher = llguidance.LLMatcher(table, grammar.text, limits=_LIMITS, log_level=0)
    _check(matcher, grammar)
    return matcher


def prepare(tokenizer: Tokenizer, grammar: Grammar) -> None:
    """Do the slow work before an answer starts. Raises RequestError."""
    compiled(tokenizer, grammar)
    _spelling(tokenizer)


def _check(matcher: llguidance.LLMatcher, grammar: Grammar) -> None:
    if matcher.is_error():
        raise RequestError(
            param=grammar.param, wanted="a schema that can be followed to its end",
            got=_one_line(matcher.get_error()),
        )  # fmt: skip


class Constraint:
    """One completion's way through a grammar. Raises RequestError where the two do not fit."""

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar) -> None:
        self._tokenizer, self._grammar = tokenizer, grammar
        self._matcher = compiled(tokenizer, grammar).deep_copy()
        self._seconds = 0.0
        self._closing: Closing | None = None

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next, [vocab]."""
        started = time.thread_time()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _check(self._matcher, self._grammar)
        self._spend(time.thread_time() - started)
        count = self._tokenizer.vocab_size
        return np.unpackbits(bits, count=count, bitorder="little").astype(np.bool_)

    def _spend(self, seconds: float) -> None:
        self._seconds += seconds
        if self._seconds > MASK_SECONDS:
            raise RequestError(
                param=self._grammar.param, got="more",
                wanted=f"a schema that takes no more than {MASK_SECONDS:g} s of CPU time an answer",
            )  # fmt: skip

    def allows(self, token: int) -> bool:
        """Say whether a token may come next."""
        if self._tokenizer.is_eos(token):
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]) == 1)

    def draw(self, seed: int, position: int, *, hurry: bool) -> int:
        """Return a random token of those allowed; in a hurry, one towards the text's end."""
        if self._closing is None:
            self._closing = Closing(_spelling(self._tokenizer), self.allows)
        started = time.thread_time()
        token = self._closing.draw(seed, position, hurry=hurry)
        self._spend(time.thread_time() - started)
        if token is None:
            ids = np.flatnonzero(self.allowed())
            token = int(ids[int(uniform(seed, position) * len(ids))])
        return token

    def accept(self, token: int) -> None:
        """Go on with a token that was allowed."""
        self._matcher.consume_token(token)
        _check(self._matcher, self._grammar)
        if self._closing is not None:
            self._closing.follow(token)

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing can follow it."""
        return bool(self._matcher.is_stopped())
