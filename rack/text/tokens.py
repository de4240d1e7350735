"""The interface of tokenizers: text to token ids and back, whole or as a stream of pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

from rack.text.chat_template import ChatTemplate, Message, PromptError


class StreamDecoder(Protocol):
    """Turns ids into text as they come; a piece holds whole characters only."""

    def feed(self, token_id: int) -> str:
        """Give the text that this id completes, perhaps none."""

    def flush(self) -> str:
        """Give what was held back; bytes that make no character come out as U+FFFD."""


class Tokenizer(ABC):
    """One model's tokens. `kind` is "tokenizer.json" or "bytes"; `notice` is for the user.

    `bos_id` is None where the model has none, `longest_token` (bytes of text that a token stands
    for at most) where there is no such bound. `plain_ids` are tokens that each decode to visible
    text of their own, which encodes to the same tokens again, however they follow each other;
    none where the vocabulary has no such tokens. Raises PromptError for input that cannot be turned
    into tokens of this model, or back.
    """

    kind: str
    _made_from: tuple[Any, ...]  # the arguments, so that another process can make it again

    def __init__(
        self,
        *,
        vocab_size: int,
        bos_id: int | None,
        eos_ids: Iterable[int],
        template: ChatTemplate,
        notice: str | None,
        longest_token: int | None,
    ) -> None:
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)
        self.template = template
        self.notice = notice
        self.longest_token = longest_token

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_from

    @cached_property
    def plain_ids(self) -> Sequence[int]:
        return [i for i in self._plain_ids() if i < self.vocab_size and i not in self.eos_ids]

    @abstractmethod
    def _plain_ids(self) -> Sequence[int]:
        """Give `plain_ids`; some may be beyond the vocabulary or end a sequence."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Give the ids of a prompt, BOS first where the model wants one."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of ids; special tokens have none."""

    @abstractmethod
    def stream(self, context: Sequence[int] = ()) -> StreamDecoder:
        """Start decoding one id at a time.

        Without `context` the pieces add up to `decode(ids)`; with it (the prompt's ids), they are
        what `ids` add to `decode(context)`, so that a first word keeps its leading space.
        """

    @abstractmethod
    def vocabulary(self) -> str | list[bytes]:
        """Give the contents of tokenizer.json, or each id's bytes, none for those without text."""

    @abstractmethod
    def _encode_rendered(self, text: str) -> list[int]:
        """Give the ids of a rendered chat, in which the template has written its own BOS."""

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
    ) -> list[int]:
        """Give the ids of a chat, up to where the assistant's answer starts."""
        return self.encode_chat(self.template.render(messages, tools, documents))

    def encode_chat(self, text: str) -> list[int]:
        """Give the ids of a chat that `template` has rendered."""
        return self.encode(text) if self.template.is_plain else self._encode_rendered(text)

    def fewest_tokens(self, text: str) -> int:
        """Give a lower bound of this text's tokens, without encoding it."""
        if self.longest_token is None:
            return 0
        return -(-len(text.encode("utf-8", "surrogatepass")) // self.longest_token)

    def is_eos(self, token_id: int) -> bool:
        """Say whether this id ends an answer."""
        return token_id in self.eos_ids

    def _check_text(self, text: str) -> None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            got = f"{text[error.start]!r} at {error.start}"
            raise PromptError(f"text: wanted whole Unicode characters, got {got}") from None

    def _check_ids(self, ids: Iterable[int]) -> None:
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise PromptError(f"token id {token_id}: wanted 0 to {self.vocab_size - 1}")
