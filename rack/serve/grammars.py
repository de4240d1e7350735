"""Grammars that requests ask for, taken in off the event loop and one at a time.

A new one goes to `rack.text.judge`; what that lets through is compiled in a thread, where the
library leaves the interpreter to others, so that the rack finds it ready.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from rack.errors import RequestError
from rack.serve.errors import BusyError, busy
from rack.text.constrain import Words, prepare
from rack.text.grammar import Grammar
from rack.text.judge import Judge, JudgeError
from rack.text.tokens import Tokenizer

MOST_BYTES = 1 << 20
MOST_WAITING = 32
_KEPT = 1024
_RETRY_SECONDS = 1

T = TypeVar("T")


class Grammars:
    """What is known about grammars, for the event loop that asks. `close` it in the end."""

    def __init__(self, tokenizer: Tokenizer, judge: Judge | None = None) -> None:
        self._tokenizer = tokenizer
        self._judge = judge
        self._known: OrderedDict[bytes, RequestError | None] = OrderedDict()
        self._one = asyncio.Lock()
        self._waiting = 0

    async def check(self, grammar: Grammar) -> None:
        """See that a grammar can be kept to, and compile it.

        Raises RequestError if not, ApiError (503) when too many wait for that. When cancelled, it
        ends the work.
        """
        if (size := len(grammar.text)) > MOST_BYTES:
            raise RequestError(
                param=grammar.param, wanted=f"schemas of up to {MOST_BYTES} bytes in all",
                got=str(size),
            )  # fmt: skip
        if self._waiting >= MOST_WAITING:
            what = f"{self._waiting} requests wait for their schemas to be compiled"
            raise busy(BusyError(what=what, retry_seconds=_RETRY_SECONDS))
        self._waiting += 1
        try:
            async with self._one:
                await self._judged(grammar)
                await _in_thread(lambda: prepare(self._tokenizer, grammar))
        finally:
            self._waiting -= 1

    async def _judged(self, grammar: Grammar) -> None:
        params = "\n".join(part.param for part in grammar.parts)
        key = hashlib.sha256(f"{params}\n{grammar.text}".encode()).digest()
        if key not in self._known:
            self._known[key] = await self._ask(grammar)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        if (error := self._known[key]) is not None:
            raise RequestError(param=error.param, wanted=error.wanted, got=error.got)

    async def _ask(self, grammar: Grammar) -> RequestError | None:
        """Ask the judge, who works in a process of its own."""
        try:
            await _in_thread(lambda: self._check(grammar), self._cancel)
        except RequestError as error:
            return error
        except JudgeError as error:
            raise busy(BusyError(what=str(error), retry_seconds=_RETRY_SECONDS)) from None
        return None

    def _check(self, grammar: Grammar) -> None:
        if self._judge is None:
            self._judge = Judge(Words.of(self._tokenizer))
        self._judge.check(grammar)

    def _cancel(self) -> None:
        if self._judge is not None:
            self._judge.cancel()

    def close(self) -> None:
        """End the judge's process."""
        if self._judge is not None:
            self._judge.close()


async def _in_thread(work: Callable[[], T], cancel: Callable[[], None] = lambda: None) -> T:
    """Work in a thread; when cancelled, tell the work and wait for its end."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancel()
        await asyncio.wait((task,))
        task.exception()  # nobody is left to hear of it
        raise
