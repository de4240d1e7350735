"""Text to token ids and back: a model's own `tokenizer.json`, or plain bytes where it has none.

Rules: a prompt gets BOS exactly once where the model's files say so; a stream of pieces adds up
to what `decode` gives for the whole; nothing depends on the date or the machine. Non-goals:
SentencePiece `tokenizer.model` files, and transformers' `clean_up_tokenization_spaces`, which
would rewrite text that has already been streamed.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from compiler.errors import ModelError
from compiler.files import is_file, read_bytes, read_json, shown
from rack.errors import ConfigError
from rack.text.byte_tokenizer import ByteTokenizer
from rack.text.chat_template import (
    NO_TEMPLATE,
    Message,
    PromptError,
    additional_templates,
    read_template,
)
from rack.text.special_tokens import read_special_tokens
from rack.text.token_bounds import longest_token, plain_words
from rack.text.tokens import StreamDecoder, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Message",
    "PromptError",
    "StreamDecoder",
    "Tokenizer",
    "load_other_tokenizer",
    "load_tokenizer",
    "tokenizer_files",
]

_BYTES = 256
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_OTHER_FORMS = ("tokenizer.model", "tekken.json", "spiece.model", "vocab.json", "vocab.txt")
_CONTEXT = 64  # ids of a prompt that decide how an answer's text begins, and more


def load_tokenizer(
    folder: Path | None,
    vocab_size: int,
    bos_token_id: int | None,
    eos_token_ids: Sequence[int],
    *,
    needed: bool = False,
) -> Tokenizer:
    """Load a model folder's tokenizer, or the byte tokenizer where it has no tokenizer.json.

    A `needed` tokenizer, for answers that people read, has no stand-in. Raises
    ModelError, naming the file, when a file is there but cannot be used.
    """
    if folder is not None and folder / "tokenizer.json" in tokenizer_files(folder):
        return FileTokenizer(folder, vocab_size, bos_token_id, eos_token_ids)
    if needed and folder is not None:
        others = ", ".join(name for name in _OTHER_FORMS if is_file(folder / name))
        got = f"only {others}, which is not read" if others else "nothing"
        wanted = "a file (transformers writes one: AutoTokenizer, then save_pretrained)"
        raise ModelError(str(folder / "tokenizer.json"), wanted, got)
    return ByteTokenizer(vocab_size, bos_token_id, eos_token_ids)


def tokenizer_files(folder: Path) -> list[Path]:
    """Give the files of a folder that a tokenizer and its templates are read from."""
    found = [folder / name for name in FILES if is_file(folder / name)]
    return found + additional_templates(folder)


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Read tokenizer.json; the library panics, or raises plain Exception, for any bad file."""
    data = (read_bytes(path) or b"").removeprefix(codecs.BOM_UTF8)
    try:
        inner = tokenizers.Tokenizer.from_buffer(data)
        inner.no_truncation()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        wanted = "a file of the tokenizers library"
        raise ModelError(str(path), wanted, str(error) or type(error).__name__) from None
    if getattr(inner.model, "dropout", None):  # other tokens for the same text
        raise ModelError(f"{path}: model.dropout", "none", shown(inner.model.dropout))
    return inner


def _notice(new: Mapping[str, int], plain: bool) -> str | None:
    said = [NO_TEMPLATE] if plain else []
    if new:
        listed = ", ".join(f"{shown(text)} ({token_id})" for text, token_id in new.items())
        said.append(f"tokens that tokenizer.json lacks are added, as transformers does: {listed}")
    return "; ".join(said) or None


def load_other_tokenizer(
    path: Path, vocab_size: int, bos_token_id: int | None, eos_token_ids: Sequence[int], *,
    model: str,
) -> Tokenizer:  # fmt: skip
    """Load a tokenizer in place of the model's: `path` is a folder, or its tokenizer.json.

    Its own end-of-sequence token counts, where its files name one. Raises ConfigError for a path
    that holds none and for one with more tokens than the model.
    """
    folder = path.parent if path.name == "tokenizer.json" else path
    if not is_file(folder / "tokenizer.json"):
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
        self._inner = _read_tokenizer(folder / "tokenizer.json")
        path = folder / "tokenizer_config.json"
        config = read_json(path) or {}
        tokens, new = read_special_tokens(folder, config, self._inner)
        self._inner.no_padding()
        template = read_template(folder, config, tokens)
        bos, eos = (self._id(tokens.get(key)) for key in ("bos_token", "eos_token"))
        super().__init__(
            vocab_size=vocab_size,
            bos_id=bos_token_id if bos is None else bos,
            eos_ids=eos_token_ids or ([] if eos is None else [eos]),
            template=template,
            notice=_notice(new, template.is_plain),
            longest_token=longest_token(self._inner),
        )
        self._add_bos: bool | None = config.get("add_bos_token")
        if not isinstance(self._add_bos, bool | None):
            raise ModelError(f"{path}: add_bos_token", "a bool", shown(self._add_bos))
        added = self._inner.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        names = (f"<0x{byte:02X}>" for byte in range(_BYTES))
        self.byte_ids = frozenset(map(self._inner.token_to_id, names)) - {None}

    def _id(self, text: str | None) -> int | None:
        token_id: int | None = None if text is None else self._inner.token_to_id(text)
        return token_id

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
