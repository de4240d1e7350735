"""The request engine: checks requests, and runs a completion alone on a rack.

`Engine` is synchronous and does no I/O. `Engine.generate` returns a `Completion`; iterating over it
runs the rack, one step per token. `Sequences` (rack/run/sequences.py) runs several at once.
Emulated time is counted from the cycles at which steps begin and end; wall time is kept apart,
under other names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compiler.pipeline import CompiledModel
from rack.errors import RackError, RequestError
from rack.run.answer_lengths import AnswerLengths
from rack.run.completion import Completion, Picker, TokenEvent
from rack.run.sequences import Sequences
from rack.run.steps import Rack
from rack.text.sampler import SamplingParams
from rack.text.tokenizer import Tokenizer


def check_request(
    compiled: CompiledModel, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams,
    *, executor: str,
) -> None:  # fmt: skip
    """Check a request before anything runs. Raises RequestError if the rack cannot do it."""
    vocab, limit = compiled.config.vocab_size, compiled.max_model_len
    if not prompt:
        raise RequestError(param="prompt", wanted="at least one token", got="none")
    if len(prompt) >= limit:
        raise RequestError(
            param="prompt",
            wanted=f"fewer tokens than the context of {limit}",
            got=f"{len(prompt)} tokens",
        )
    bad = [token for token in prompt if not 0 <= token < vocab]
    if bad:
        raise RequestError(param="prompt", wanted=f"token ids below {vocab}", got=str(bad[0]))
    if compiled.top_k:
        _check_top_k(compiled.top_k, tokenizer, params)
    if params.grammar is not None and compiled.top_k and executor != "timing":
        raise RequestError(
            param=params.grammar.param, wanted="free text: this rack returns only some logits",
            got="a schema",
        )  # fmt: skip


def _check_top_k(top: int, tokenizer: Tokenizer, params: SamplingParams) -> None:
    """Refuse parameters that need more logits than the `top` largest, which this rack returns."""
    drawn = params.temperature > 0
    if drawn and not 0 < params.top_k <= top:
        raise RequestError(
            param="top_k", wanted=f"1 to {top}: this rack returns the {top} largest logits",
            got=str(params.top_k),
        )  # fmt: skip
    banned = len(tokenizer.eos_ids) if params.min_tokens and not params.ignore_eos else 0
    if (params.top_k if drawn else 1) + banned > top:
        raise RequestError(
            param="min_tokens",
            wanted=f"0: of the {top} largest logits that this rack returns too few are left "
            f"without {banned} ends of sequence",
            got=str(params.min_tokens),
        )


class Engine:
    """Makes completions for a rack, and runs one alone.

    `answers` gives the lengths of the timing executor's answers; None: they have no end.
    """

    def __init__(
        self, rack: Rack, tokenizer: Tokenizer, answers: AnswerLengths | None = None
    ) -> None:
        self.rack, self.tokenizer, self.compiled = rack, tokenizer, rack.compiled
        self.picker = Picker(rack.compiled, tokenizer, answers)
        self.clock_hz = rack.compiled.chip.clock_hz
        self.running: Completion | None = None

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Completion:
        """Check a request and return it ready to run. Raises RequestError."""
        check_request(self.compiled, self.tokenizer, prompt, params, executor=self.rack.executor)
        return Completion(self.picker, prompt, params, self.alone)

    def alone(self, completion: Completion) -> Iterator[TokenEvent]:
        """Run a completion alone on the rack."""
        self.running = completion
        sequences = Sequences(self.rack)
        sequences.admit(completion)
        while completion.finish_reason is None:
            for event in sequences.advance():
                if isinstance(event.token, RequestError):
                    raise event.token
                yield event.token
            if self.running is not completion:  # its cache rows are overwritten
                raise RackError(
                    "this completion was left: another one has started on its rack since"
                )
