"""The slots of a rack's cache: which are free, and what tokens each still holds.

A prompt that begins like what a free slot holds can go on from there, from the last boundary of a
whole chunk on. Keys and values of a token depend on the tokens up to it alone, so the answer is the
same; what is saved is time.
"""

from __future__ import annotations

from collections.abc import Sequence

from chip.ops.kv import ring_of
from compiler.pipeline import CompiledModel


class Slots:
    """The free slots. With `reuse`, prompts go on from what slots hold."""

    def __init__(self, compiled: CompiledModel, *, reuse: bool) -> None:
        self._compiled, self.reuse = compiled, reuse
        self._held: dict[int, list[int]] = {slot: [] for slot in range(compiled.sequences)}
        # Free slots, the one longest without use first.

    def take(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Take a free slot: return it, and how many of the prompt's tokens it holds for reuse.

        The slot is the one that holds the most, of equal ones the one longest without use.
        """
        kept = {slot: self._shared(held, prompt) for slot, held in self._held.items()}
        slot = max(kept, key=lambda one: kept[one]) if self.reuse else min(kept)
        self._held.pop(slot)
        return slot, kept[slot] if self.reuse else 0

    def give_back(self, slot: int, tokens: list[int]) -> None:
        """Free a slot that holds the keys and values of these tokens."""
        self._held[slot] = tokens

    def _shared(self, held: Sequence[int], prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt can be taken from a slot.

        The last token of a prompt always runs. A ring must still hold the window before the
        boundary: what came later is written over what was `ring` tokens before it. One token more
        than is held may have come: the step of a sequence that was given up.
        """
        most = min(len(held), len(prompt) - 1)
        same = next((n for n in range(most) if held[n] != prompt[n]), most)
        chunk, config = self._compiled.prefill_chunk, self._compiled.config
        boundary = same // chunk * chunk
        for window in {window for window in config.windows if window is not None}:
            ring = ring_of(window, self._compiled.max_model_len)
            if ring is not None and len(held) + 1 - ring > max(0, boundary - window + 1):
                return 0
        return boundary
