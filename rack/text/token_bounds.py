"""What a tokenizer's files tell before any text is encoded: bounds, and plain words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

MOST_WORDS = 8192
_ANCHOR = "a"  # a text may begin otherwise than it goes on
_SPACES = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies write a leading space


def longest_token(inner: tokenizers.Tokenizer) -> int | None:
    """Return the most bytes of text that one token stands for; None where there is no bound.

    There is a bound where every byte of a text is in some token: a byte-level BPE has all bytes in
    its vocabulary, and no step before it drops text.
    """
    vocabulary = inner.get_vocab(with_added_tokens=False)
    added = inner.get_added_tokens_decoder().values()
    if not (
        inner.normalizer is None
        and isinstance(inner.model, models.BPE)
        and _keeps_bytes(inner.pre_tokenizer)
        and vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
        and not any(token.lstrip or token.rstrip for token in added)
    ):
        return None
    longest = max(map(len, vocabulary))  # a character of these stands for a byte
    return max(longest, *(len(token.content.encode("utf-8")) for token in added), 1)


def _keeps_bytes(step: Any) -> bool:
    """Say whether a pre-tokenizer is byte-level and drops nothing."""
    if step is None:
        return False
    parts = list(_parts(json.loads(step.__getstate__())))
    kept = {"ByteLevel", "Split", "Digits"}
    return any(part["type"] == "ByteLevel" for part in parts) and all(
        part["type"] in kept and part.get("behavior") != "Removed" for part in parts
    )


def _parts(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if step["type"] == "Sequence":
        for part in step["pretokenizers"]:
            yield from _parts(part)
    else:
        yield step


def plain_words(inner: tokenizers.Tokenizer) -> list[int]:
    """Return ids of words with a space in front, the first few thousand by id.

    Each is one token after other text and after itself.
    """
    found = []
    for text, i in sorted(inner.get_vocab(with_added_tokens=False).items(), key=lambda one: one[1]):
        word = text[1:]
        if text[:1] in _SPACES and word.isascii() and word.isalpha():
            found.append((i, f" {word}"))
    found = found[:MOST_WORDS]
    before = inner.encode(_ANCHOR, add_special_tokens=False).ids
    texts = [_ANCHOR + text * 2 for _, text in found]
    encoded = inner.encode_batch_fast(texts, add_special_tokens=False)
    return [i for (i, _), one in zip(found, encoded, strict=True) if one.ids == [*before, i, i]]
