"""Constrained decoding: only tokens that continue a JSON text which a schema describes.

llguidance works out, before each token is sampled, which tokens the schema allows; the host then
samples among those. The logits that the rack returned, and so `data_hash`'s share of them, are not
touched, and no step is skipped: a forced token costs its decode step like any other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from rack.errors import RequestError
from rack.tokenizer import Tokenizer

PARAM = "response_format"

# At most one space between JSON's tokens: small models otherwise lose themselves in blank space.
_WHITESPACE: Any = {"whitespace_pattern": " ?"}


@lru_cache(maxsize=64)
def grammar_of(schema: str) -> str:
    """Return llguidance's grammar for a JSON schema, given as JSON text. Raises RequestError."""
    try:
        grammar: str = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_WHITESPACE)
        error = llguidance.LLMatcher.validate_grammar(grammar)
    except ValueError as found:
        error = str(found)
    if error:
        raise RequestError(
            param=PARAM, wanted="a JSON schema that can be kept to", got=_one_line(error)
        )
    return grammar


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


@lru_cache(maxsize=4)
def _table(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """Return a tokenizer's tokens as bytes, sorted for look-up; takes a second for 128k tokens."""
    eos = sorted(tokenizer.eos_ids)
    if not eos:
        raise RequestError(
            param=PARAM, wanted='{"type": "text"}', got="this model has no end of sequence"
        )
    vocabulary = tokenizer.vocabulary()
    try:
        if isinstance(vocabulary, str):
            return llguidance.LLTokenizer(vocabulary, n_vocab=tokenizer.vocab_size, eos_token=eos)
        words = llguidance.TokenizerWrapper(_Words(tokenizer, vocabulary, eos[0]))
        return llguidance.LLTokenizer(words, n_vocab=tokenizer.vocab_size, eos_token=eos)
    except ValueError as error:
        raise RequestError(
            param=PARAM, wanted='{"type": "text"}',
            got=f"this model's tokenizer has no bytes for its tokens: {_one_line(str(error))}",
        ) from None  # fmt: skip


class _Words:
    """A list of tokens in the form that llguidance takes."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], eos: int) -> None:
        self.eos_token_id, self.bos_token_id = eos, tokenizer.bos_id
        self.tokens = tokens
        self.special_token_ids = [i for i, token in enumerate(tokens) if not token]

    def __call__(self, text: bytes) -> list[int]:
        """Give the ids of a text: any that spell it."""
        return list(text)


class Constraint:
    """One completion's way through a schema. Raises RequestError where the two do not fit."""

    def __init__(self, tokenizer: Tokenizer, schema: str) -> None:
        self._vocab = tokenizer.vocab_size
        self._matcher = llguidance.LLMatcher(_table(tokenizer), grammar_of(schema))
        self._check()

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next, [vocab]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._vocab, bitorder="little").astype(np.bool_)

    def accept(self, token: int) -> None:
        """Go on with a token that was allowed."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing can follow it."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(
                param=PARAM, wanted="a schema that can be followed to its end",
                got=_one_line(self._matcher.get_error()),
            )  # fmt: skip
