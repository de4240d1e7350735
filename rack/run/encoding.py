"""A sequence through an encoder: one step, whose rows all see each other.

Rows go in from the last token to the first: the position of row 0 is then that up to which every
row sees, and it says how many tokens there are (`Attend.horizon`). Nothing else in a step message
differs from a decoder's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chip.kernels import load as load_kernels
from compiler.pipeline import CompiledModel
from rack.errors import RequestError
from rack.run.anew import until_done
from rack.run.steps import Rack, Recovery, StepOrder, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Hidden states [tokens, hidden] fp32, None without data; and what they took.

    After `recoveries` the step was run once more, which is in no other figure.
    """

    step: str
    cycles: int
    hidden: NDArray[np.float32] | None
    recoveries: tuple[Recovery, ...] = ()

    @property
    def data_hash(self) -> str | None:
        """SHA-256 over the sum for each token of what `logit_hash` makes of its states (law 5)."""
        if self.hidden is None:
            return None
        digest, kernels = hashlib.sha256(), load_kernels()
        for row in self.hidden:
            digest.update(struct.pack("<Q", kernels.logit_hash(row, 0)))
        return digest.hexdigest()


def encode(
    rack: Rack, tokens: Sequence[int], types: Sequence[int] | None = None
) -> Encoded:  # fmt: skip
    """Run one sequence. `types`: the tokens' kinds, all 0 unless given.

    After a fault from which the rack recovers, it runs once more. Raises RequestError, and as
    `Rack.recover`.
    """
    check_sequence(rack.compiled, tokens, types)
    types = [0] * len(tokens) if types is None else types
    name, kinds = rack.compiled.encode_step(len(tokens)).name, types

    def run() -> StepResult:
        rack.reset()
        rack.start(StepOrder(
            name=name, base=rack.compiled.network.start_cycles, slots=(0,) * len(tokens),
            positions=tuple(range(len(tokens) - 1, -1, -1)), tokens=tuple(tokens[::-1]),
            types=tuple(kinds[::-1]),
        ))  # fmt: skip
        (result,) = rack.finish()
        return result

    result, recoveries = until_done(rack, run)
    cycles = rack.compiled.network.start_cycles + result.cycles
    hidden = None if result.hidden is None else result.hidden[::-1].copy()
    again = tuple(replace(one, replayed_cycles=cycles) for one in recoveries)
    return Encoded(step=name, cycles=cycles, hidden=hidden, recoveries=again)


def check_sequence(
    compiled: CompiledModel, tokens: Sequence[int], types: Sequence[int] | None
) -> None:  # fmt: skip
    """Refuse what the rack cannot encode. Raises RequestError."""
    config, limit = compiled.config, compiled.max_model_len
    assert config.encoder is not None
    if not 1 <= len(tokens) <= limit:
        raise RequestError(
            param="tokens", wanted=f"1 to {limit}, the context", got=f"{len(tokens)} tokens"
        )
    types = [0] * len(tokens) if types is None else types
    if len(types) != len(tokens):
        raise RequestError(
            param="types", wanted=f"one for each of {len(tokens)} tokens", got=str(len(types))
        )
    kinds = config.encoder.type_vocab_size
    for name, values, size in (("tokens", tokens, config.vocab_size), ("types", types, kinds)):
        bad = [value for value in values if not 0 <= value < size]
        if bad:
            raise RequestError(param=name, wanted=f"ids below {size}", got=str(bad[0]))
