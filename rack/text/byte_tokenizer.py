"""The tokenizer of a model that has none: plain UTF-8 bytes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import NoReturn

from rack.text.chat_template import NO_TEMPLATE, ChatTemplate, PromptError
from rack.text.tokens import StreamDecoder, Tokenizer

_BYTES = 256
_NO_TOKENIZER = "no tokenizer.json: a byte tokenizer is used (one token per UTF-8 byte)"


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are bytes, then BOS and EOS unless the model has its own; the rest `<t1234>`.

    The model's own BOS and EOS ids always win, because the model stops on them. A byte whose id
    they take, or that is beyond the vocabulary, cannot be written.
    """

    kind = "bytes"

    def __init__(
        self,
        vocab_size: int,
        bos_token_id: int | None,
        eos_token_ids: Sequence[int],
    ) -> None:
        self._made_from = (vocab_size, bos_token_id, tuple(eos_token_ids))
        if bos_token_id is None and vocab_size > _BYTES:
            bos_token_id = _BYTES
        if not eos_token_ids and vocab_size > _BYTES + 1:
            eos_token_ids = [_BYTES + 1]
        super().__init__(
            vocab_size=vocab_size,
            bos_id=bos_token_id,
            eos_ids=eos_token_ids,
            template=ChatTemplate(None, where=self.kind),
            notice=f"{_NO_TOKENIZER}; {NO_TEMPLATE}",
            longest_token=1,
        )
        self.special_ids = self.eos_ids | ({bos_token_id} if bos_token_id is not None else set())
        taken = {i for i in self.special_ids if i < _BYTES}
        self._missing = bytes(sorted(taken | set(range(vocab_size, _BYTES))))

    def _plain_ids(self) -> Sequence[int]:
        return [i for i in range(ord("!"), ord("~") + 1) if i not in self.special_ids]

    def encode(self, text: str) -> list[int]:
        ids = self._encode_rendered(text)
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def _encode_rendered(self, text: str) -> list[int]:
        self._check_text(text)
        data = text.encode("utf-8")
        found = [place for byte in self._missing if (place := data.find(byte)) >= 0]
        if found:
            self._refuse(data[min(found)])
        return list(data)

    def _refuse(self, byte: int) -> NoReturn:
        if byte >= self.vocab_size:
            raise PromptError(
                f"byte 0x{byte:02x}: this model has no tokenizer and only {self.vocab_size} "
                f"token ids, so it can only be given bytes below 0x{self.vocab_size:02x}"
            )
        raise PromptError(
            f"byte 0x{byte:02x}: this model has no tokenizer, and uses token id {byte} "
            "for BOS or EOS"
        )

    def decode(self, ids: Sequence[int]) -> str:
        stream = self.stream()
        return "".join(map(stream.feed, ids)) + stream.flush()

    def stream(self, context: Sequence[int] = ()) -> StreamDecoder:
        return _ByteStream(self)

    def vocabulary(self) -> list[bytes]:
        silent = self.special_ids | set(range(_BYTES, self.vocab_size))
        return [b"" if i in silent else bytes((i,)) for i in range(self.vocab_size)]


class _ByteStream:
    """Decodes UTF-8 byte by byte."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        self._tokenizer._check_ids((token_id,))
        if token_id in self._tokenizer.special_ids:
            return ""
        if token_id < _BYTES:
            return self._utf8.decode(bytes((token_id,)))
        return self.flush() + f"<t{token_id}>"

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)
