"""Text to token ids and back: a model's own `tokenizer.json`, or plain bytes where it has none.

Rules: a prompt gets BOS exactly once where the model's files say so; a stream of pieces adds up
to what `decode` gives for the whole; nothing depends on the date or the machine. Non-goals:
SentencePiece `tokenizer.model` files, and transformers' `clean_up_tokenization_spaces`, which
would rewrite text that has already been streamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from compiler.errors import ModelError
from rack.byte_tokenizer import ByteTokenizer
from rack.chat_template import (
    NO_TEMPLATE,
    Message,
    PromptError,
    read_template,
    read_tokenizer_config,
)
from rack.errors import ConfigError
from rack.token_bounds import longest_token, plain_words
from rack.tokens import StreamDecoder, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Message",
    "PromptError",
    "StreamDecoder",
    "Tokenizer",
    "load_other_tokenizer",
    "load_tokenizer",
]

_BYTES = 256
_CONTEXT = 64  # ids of a prompt that decide how an answer's text begins, and more


def load_tokenizer(
    folder: Path | None,
    vocab_size: int,
    bos_token_id: int | None,
    eos_token_ids: Sequence[int],
) -> Tokenizer:
    """Load a model folder's tokenizer, or the byte tokenizer where it has no tokenizer.json.

    Raises ModelError, naming the file, when a file is there but cannot be used.
    """
    if folder is None or not (folder / "tokenizer.json").is_file():
        return ByteTokenizer(vocab_size, bos_token_id, eos_token_ids)
    return FileTokenizer(folder, vocab_size, bos_token_id, eos_token_ids)


def load_other_tokenizer(
    path: Path, vocab_size: int, bos_token_id: int | None, eos_token_ids: Sequence[int], *,
    model: str,
) -> Tokenizer:  # fmt: skip
    """Load a tokenizer in place of the model's: `path` is a folder, or its tokenizer.json.

    Its own end-of-sequence token counts, where its files name one. Raises ConfigError for a path
    that holds none and for one with more tokens than the model.
    """
    folder = path.parent if path.name == "tokenizer.json" else path
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"tokenizer: wanted a folder with tokenizer.json, got {path}")
    tokenizer = FileTokenizer(folder, vocab_size, None, ())
    if tokenizer.tokens > vocab_size:
        raise ConfigError(
            f"tokenizer: wanted at most the {vocab_size} tokens of {model}, "
            f"{folder / 'tokenizer.json'} has {tokenizer.tokens}"
        )
    if tokenizer.eos_ids:
        return tokenizer
    return FileTokenizer(folder, vocab_size, bos_token_id, eos_token_ids)


class FileTokenizer(Tokenizer):
    """`tokenizer.json` through the tokenizers library, with what tokenizer_config.json adds."""

    kind = "tokenizer.json"

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        bos_token_id: int | None,
        eos_token_ids: Sequence[int],
    ) -> None:
        self._made_from = (folder, vocab_size, bos_token_id, tuple(eos_token_ids))
        path = folder / "tokenizer.json"
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception, for any bad file
            raise ModelError(str(path), "a file of the tokenizers library", str(error)) from None
        self._inner.no_truncation()
        self._inner.no_padding()
        config = read_tokenizer_config(folder)
        bos, eos = (self._special(folder, config, key) for key in ("bos_token", "eos_token"))
        if bos is None and bos_token_id is not None:
            bos = self._inner.id_to_token(bos_token_id)
        template = read_template(folder, config, bos=bos or "", eos=eos or "")
        eos_ids: list[Any] = list(eos_token_ids)
        if eos is not None and not eos_ids:
            eos_ids.append(self._inner.token_to_id(eos))
        super().__init__(
            vocab_size=vocab_size,
            bos_id=bos_token_id if bos is None else self._inner.token_to_id(bos),
            eos_ids=eos_ids,
            template=template,
            notice=NO_TEMPLATE if template.is_plain else None,
            longest_token=longest_token(self._inner),
        )
        self._add_bos: bool | None = config.get("add_bos_token")
        added = self._inner.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        names = (f"<0x{byte:02X}>" for byte in range(_BYTES))
        self.byte_ids = frozenset(map(self._inner.token_to_id, names)) - {None}

    def _special(self, folder: Path, config: dict[str, Any], key: str) -> str | None:
        """Give a special token's text, which must be in the vocabulary."""
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and (
            not isinstance(text, str) or self._inner.token_to_id(text) is None
        ):
            where = f"{folder / 'tokenizer_config.json'}: {key}"
            raise ModelError(where, "a token of tokenizer.json", repr(value))
        return text

    @property
    def tokens(self) -> int:
        """Ids that it may give: one more than the highest."""
        return 1 + max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> list[int]:
        # Without add_bos_token, tokenizer.json's own post-processor decides.
        ids = self._ids(text, post_process=self._add_bos is None)
        if self._add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        while len(ids) > 1 and ids[0] == ids[1] == self.bos_id:  # the text brought its own
            del ids[0]
        return ids

    def _encode_rendered(self, text: str) -> list[int]:
        return self._ids(text, post_process=False)

    def _ids(self, text: str, *, post_process: bool) -> list[int]:
        self._check_text(text)
        ids: list[int] = self._inner.encode(text, add_special_tokens=post_process).ids
        self._check_ids(ids)  # some folders carry tokens that were added after training
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        self._check_ids(ids)
        text: str = self._inner.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self, context: Sequence[int] = ()) -> StreamDecoder:
        return _FileStream(self, context[-_CONTEXT:])

    def _plain_ids(self) -> Sequence[int]:
        return plain_words(self._inner)

    def vocabulary(self) -> str:
        text: str = self._inner.to_str()
        return text


class _FileStream:
    """Decodes a sliding window: the text since the last cut, with the window before as context.

    The window before is what keeps leading spaces: decoders strip the first one of a text.
    """

    def __init__(self, tokenizer: FileTokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = [i for i in context if i not in tokenizer.special_ids]
        self._cut = len(self._ids)  # text up to here has been given out

    def feed(self, token_id: int) -> str:
        self._tokenizer._check_ids((token_id,))
        if token_id in self._tokenizer.special_ids:
            return ""
        self._ids.append(token_id)
        # Byte tokens spell whole runs: a bad byte turns all of its run into U+FFFD, also those
        # before it, so a run is held until it ends.
        return "" if token_id in self._tokenizer.byte_ids else self._emit(final=False)

    def flush(self) -> str:
        return self._emit(final=True)

    def _emit(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[: self._cut])
        text = self._tokenizer.decode(self._ids)
        if not final and (len(text) <= len(before) or text.endswith("\ufffd")):
            return ""  # perhaps half a character
        self._ids = self._ids[self._cut :]
        self._cut = len(self._ids)
        return text[len(before) :]
