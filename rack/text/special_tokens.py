"""A model's special tokens, gathered from its files as transformers gathers them.

`tokenizer_config.json` names them; `special_tokens_map.json` overrides it in folders from before
`added_tokens_decoder`; `tokenizer.json` may name the padding token. Each is added to the tokenizer,
so that its text is one token; one without an id gets a new id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from compiler.errors import ModelError
from compiler.files import read_json, shown

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MUST_BE_KNOWN = ("bos_token", "eos_token")  # a model that never saw its BOS is another model's
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_special_tokens(
    folder: Path, config: Mapping[str, Any], inner: tokenizers.Tokenizer
) -> tuple[dict[str, Any], dict[str, int]]:
    """Give the tokens that a chat template knows, by name, and the tokens that got new ids.

    Each named token has its text, `additional_special_tokens` a list; a token that no file names
    is absent. Raises ModelError, naming file and key.
    """
    values = [(folder / "tokenizer_config.json", dict(config))]
    padding = inner.padding
    if padding is not None and config.get("pad_token") is None:
        values.insert(0, (folder / "tokenizer.json", {"pad_token": padding["pad_token"]}))
    if "added_tokens_decoder" not in config:
        path = folder / "special_tokens_map.json"
        values.append((path, read_json(path) or {}))
        added = [*_legacy(folder / "added_tokens.json")]
    else:
        added = [*_decoder(values[-1][0], config["added_tokens_decoder"])]
    out: dict[str, Any] = {}
    for path, found in values:
        for key, value in _tokens(path, found):
            if key in _MUST_BE_KNOWN and inner.token_to_id(value) is None:
                raise ModelError(f"{path}: {key}", "a token of tokenizer.json", shown(value))
            out[key] = value
    for value in out.values():
        texts = value if isinstance(value, list) else [value]
        added += [tokenizers.AddedToken(text, special=True) for text in texts]
    return out, _add(inner, added)


def _tokens(path: Path, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give the name and text of each special token of a file, and the list of the others."""
    for key, value in values.items():
        where = f"{path}: {key}"
        if value is None:
            continue
        if key in _LISTS and isinstance(value, dict):  # tokens by name: image_token, …
            for name, token in value.items():
                yield name, _text(f"{where}.{name}", token)
        elif key in _LISTS:
            if not isinstance(value, list):
                raise ModelError(where, "a list of tokens", shown(value))
            yield "additional_special_tokens", [_text(where, token) for token in value]
        elif key in _NAMED or (key.endswith("_token") and isinstance(value, str | dict)):
            yield key, _text(where, value)


def _text(where: str, value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not _is_unicode(text):
        raise ModelError(where, "a token of tokenizer.json", shown(value))
    return text


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _decoder(path: Path, value: Any) -> Iterator[tokenizers.AddedToken]:
    """Give the tokens of `added_tokens_decoder`, which has them by id, in the order of ids."""
    where = f"{path}: added_tokens_decoder"
    if not isinstance(value, dict):
        raise ModelError(where, "an object of tokens by id", shown(value))
    for key in value:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise ModelError(where, "token ids as keys", shown(key))
    for key in sorted(value, key=int):
        token = value[key]
        if not isinstance(token, dict):
            raise ModelError(f"{where}.{key}", "a token with its content", shown(token))
        flags = {flag: token[flag] for flag in _FLAGS if flag in token}
        if wrong := [flag for flag in flags if not isinstance(flags[flag], bool)]:
            raise ModelError(f"{where}.{key}.{wrong[0]}", "a bool", shown(flags[wrong[0]]))
        yield tokenizers.AddedToken(_text(f"{where}.{key}", token), **flags)


def _legacy(path: Path) -> Iterator[tokenizers.AddedToken]:
    """Give the tokens of added_tokens.json, which has ids by token."""
    found = read_json(path) or {}
    for text, number in found.items():
        if not isinstance(number, int) or isinstance(number, bool) or not _is_unicode(text):
            raise ModelError(f"{path}: {text}", "a token id", shown(number))
    for text in sorted(found, key=lambda text: found[text]):
        yield tokenizers.AddedToken(text, special=False)


def _add(inner: tokenizers.Tokenizer, tokens: Sequence[tokenizers.AddedToken]) -> dict[str, int]:
    """Add the tokens that are not there; give those with a new id."""
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    new: dict[str, int] = {}
    for token in tokens:
        if token.content in known or not token.content:
            continue
        before = inner.token_to_id(token.content)
        inner.add_tokens([token])
        known.add(token.content)
        after = inner.token_to_id(token.content)
        if before is None and after is not None:
            new[token.content] = after
    return new
