"""The advice for a prompt that is too long: how to get more context."""

from __future__ import annotations

from dataclasses import replace

from compiler.pipeline import largest_context
from rack.errors import RequestError
from rack.run.session import Prepared, options_of


def context_advice(prepared: Prepared) -> str:
    """Say which flag or which machine raises the context, or that none does."""
    compiled, config = prepared.compiled, prepared.config
    most, now = compiled.config.max_position_embeddings, compiled.max_model_len
    if now >= most:
        return f"{compiled.config.name} has no more positions"
    if prepared.images is not None:
        return "an artifact compiled with a larger --max-model-len raises it"
    options = replace(options_of(config), max_model_len=None)
    plain = replace(compiled.chip, work_slices=1, feed_slices=0)  # as the compiler decides it
    fits = largest_context(compiled.partition, compiled.network, plain, options)
    where = f"{compiled.layout} on {compiled.target_name}"
    if fits > now:
        return f"--max-model-len raises it, up to {fits} with {where}"
    way = (
        f"--max-model-len up to {most} takes a layout with more chips"
        if config.layout == "auto"
        else "a --layout with more chips raises it"
    )
    return f"it is the largest that fits {where}: {way}, and so does --hardware with more SRAM"


def check_room(prepared: Prepared, tokens: int) -> None:
    """Raise RequestError for a prompt that leaves no room in the context."""
    limit = prepared.compiled.max_model_len
    if tokens >= limit:
        raise RequestError(
            param="prompt",
            wanted=f"fewer tokens than the context of {limit} ({context_advice(prepared)})",
            got=f"{tokens} tokens",
        )
