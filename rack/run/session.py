"""Make a rack that answers from a resolved configuration: the one place that joins all parts.

`prepare` compiles and starts nothing; `open_rack` starts chips; `Session` is both with an engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path

from compiler.artifact import is_artifact
from compiler.errors import CapacityError
from compiler.model.architecture import ENCODERS
from compiler.model.config import ModelConfig
from compiler.model.frontend import Model, resolve_model
from compiler.model.layer import embeddings
from compiler.model.weights import WeightsKind
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.auto import choose_layout, smallest_layout
from compiler.place.layout import parse_layout
from rack.errors import KNOWN_ERRORS as KNOWN_ERRORS
from rack.errors import ConfigError
from rack.machines.hardware import Hardware
from rack.machines.profile import load_hardware
from rack.run.answer_lengths import DEFAULT, AnswerLengths, answer_lengths
from rack.run.config import RunConfig
from rack.run.engine import Engine
from rack.run.flagged import errors_notice, link_errors
from rack.run.local import LocalRack
from rack.run.native import native_notices
from rack.run.rebinding import spare_slots, spares_notice
from rack.run.steps import Rack
from rack.run.stored import Images, load_stored
from rack.run.timing_rack import TimingRack
from rack.system.progress import Progress
from rack.text.tokenizer import Tokenizer, load_other_tokenizer, load_tokenizer


class Task(Enum):
    """What a verb asks of a model, where it can be only one kind of it."""

    GENERATE = "generate text"
    ENCODE = "encode text"

    def check(self, config: ModelConfig) -> None:
        """Refuse a model of the other kind, and say which verb is for it. Raises ConfigError."""
        if self is Task.GENERATE and config.encoder is not None:
            raise ConfigError(
                f"model: wanted one that generates text, got {config.name}, an encoder "
                f"({config.architecture}): rack.encode gives its hidden states"
            )
        if self is Task.ENCODE and config.encoder is None:
            raise ConfigError(
                f"model: wanted an encoder ({' or '.join(ENCODERS)}), got {config.name} "
                f"({config.architecture}): rack.generate continues a text with it"
            )


def quiet(stage: str, done: int, total: int) -> None:
    """A Progress that does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A compiled model with everything around it; nothing runs yet."""

    config: RunConfig
    model: Model
    hardware: Hardware
    compiled: CompiledModel
    tokenizer: Tokenizer
    images: Images | None = None
    runs: bool = True
    weight_notices: tuple[str, ...] = ()

    @property
    def answers(self) -> AnswerLengths | None:
        """The lengths of the timing executor's answers; None for other executors, or no end."""
        if self.config.executor != "timing":
            return None
        return answer_lengths(self.config.answer_tokens or DEFAULT)

    @property
    def notices(self) -> list[str]:
        """The notices for the user of a run, about the limits of its numbers or its speed.

        Raises ConfigError as `native_notices` does.
        """
        if not self.runs:
            return [*self.model.notices]
        out: list[str] = []
        described = self.model.weights_ref.describe()
        if self.config.executor == "timing":
            out.append("TIMING executor: cycles are exact, tokens are drawn at random")
        elif described.startswith("SYNTHETIC"):
            out.append(described)
        errors = link_errors(self.compiled, self.hardware)
        if errors and self.config.executor != "timing":
            out.append(errors_notice(self.compiled, errors))
        spares, stored = self.config.spares, self.images is not None
        if notice := spares_notice(self.compiled, self.hardware, spares, stored=stored):
            out.append(notice)
        out += [*self.model.notices, *self.weight_notices]
        if self.tokenizer.notice:
            out.append(self.tokenizer.notice)
        return [*out, *native_notices(self.config.executor, self.config.transport)]


def prepare(
    config: RunConfig, *, kinds: str = "all", contexts: Sequence[int] | None = None,
    progress: Progress = quiet, runs: bool = True, task: Task | None = None,
    text: bool | None = None, hardware: Hardware | None = None,
    compiled: CompiledModel | None = None,
) -> Prepared:  # fmt: skip
    """Resolve the model and the machine, choose the layout, compile. Raises KNOWN_ERRORS.

    A verb that only looks at the schedule (`runs` False) needs no weights, only config.json. A
    CapacityError names the smallest layout that would fit. MODEL may be an artifact's folder.
    A `task` refuses models that are not for it. `text`: whether the tokenizer will be needed; it
    is, unless the model is an encoder, which can be given tokens.
    An error that `progress` raises ends the preparation. `hardware` stands in for the machine that
    the configuration names, and `compiled` for what would be compiled on it.
    """
    images: Images | None = None
    found: tuple[str, ...] = ()
    if is_artifact(Path(config.model)):
        model, hardware, compiled, images = load_stored(config, runs=runs)
        if task is not None:
            task.check(model.config)
        found = _check_weights(config, model, runs)
    else:
        model = resolve_model(config.model, config.weights, config.seed, config.layers)
        if task is not None:
            task.check(model.config)
        hardware = hardware or load_hardware(config.hardware)
        found = _check_weights(config, model, runs)
        compiled = compiled or _compile(config, model, hardware, kinds, contexts, progress)
    spare_slots(compiled, hardware, config.spares)  # refused before anything starts
    return Prepared(
        config=config,
        model=model,
        hardware=hardware,
        compiled=compiled,
        tokenizer=_tokenizer(
            config, model, runs and (model.config.encoder is None if text is None else text)
        ),
        images=images,
        runs=runs,
        weight_notices=found,
    )


def of_task(task: Task, prepared: Prepared) -> Prepared:
    """Return a prepared model that is for the task. Raises ConfigError."""
    task.check(prepared.model.config)
    return prepared


def _check_weights(config: RunConfig, model: Model, runs: bool) -> tuple[str, ...]:
    """Refuse missing or damaged files before anything is compiled; return the notices.

    Chips check the weights that they load. They load only a part of the embedding tables, if any,
    so these are checked here.
    """
    if config.executor == "timing" or not runs:
        return ()
    source = model.weights_ref.open()
    for name in embeddings(model.config):
        source.check_finite(name)
    return source.notices


def _tokenizer(config: RunConfig, model: Model, runs: bool) -> Tokenizer:
    """Load the model's tokenizer, or the one asked for instead."""
    c = model.config
    if config.tokenizer is None:
        real = config.executor != "timing" and model.weights_ref.kind is WeightsKind.SAFETENSORS
        return load_tokenizer(
            model.folder, c.vocab_size, c.bos_token_id, c.eos_token_ids, needed=runs and real
        )
    return load_other_tokenizer(
        Path(config.tokenizer), c.vocab_size, c.bos_token_id, c.eos_token_ids, model=c.name
    )


def options_of(config: RunConfig) -> Options:
    """Return the compiler's options in a configuration."""
    return Options(
        dtype=config.dtype,
        int4_group=config.int4_group,
        max_model_len=config.max_model_len,
        prefill_chunk=config.prefill_chunk,
        top_k=config.top_k,
        sequences=config.sequences,
        batch=config.batch,
    )


def _compile(
    config: RunConfig,
    model: Model,
    hardware: Hardware,
    kinds: str,
    contexts: Sequence[int] | None,
    progress: Progress,
) -> CompiledModel:
    options = options_of(config)
    if config.layout == "auto":
        layout = choose_layout(
            model.config, hardware, options, partial(progress, "choosing a layout"),
            spares=config.spares,
        )  # fmt: skip
    else:
        layout = parse_layout(config.layout)
    try:
        return compile_model(
            model.config, hardware, layout, options, kinds=kinds, contexts=contexts,
            progress=partial(progress, f"compiling {model.config.name}"),
        )  # fmt: skip
    except CapacityError as error:
        fits = smallest_layout(model.config, hardware, options)
        raise error.advise(str(fits) if fits else None) from None


def open_rack(prepared: Prepared, progress: Progress | None = None) -> Rack:
    """Start the chips of a prepared model on the configured transport."""
    config = prepared.config
    if config.executor == "timing":
        return TimingRack(prepared.compiled)
    errors = link_errors(prepared.compiled, prepared.hardware)
    if config.transport == "local":
        return LocalRack(
            prepared.compiled, prepared.model.weights_ref, images=prepared.images,
            executor=config.executor, errors=errors,
        )  # fmt: skip
    from rack.run.remote import start_process_rack, start_ray_rack  # heavy: only where chips start

    start = start_ray_rack if config.transport == "ray" else start_process_rack
    return start(
        prepared.compiled, prepared.model.weights_ref, prepared.hardware,
        step_timeout_s=config.step_timeout_s, progress=progress, images=prepared.images,
        executor=config.executor, spares=config.spares, errors=errors,
        compile_again=partial(_again, prepared),
    )  # fmt: skip


def _again(prepared: Prepared, binding: tuple[int, ...]) -> CompiledModel:
    """Compile a prepared model for another binding; all else is as it was."""
    old = prepared.compiled
    options = replace(
        options_of(prepared.config), max_model_len=old.max_model_len,
        prefill_chunk=old.prefill_chunk, binding=binding,
    )  # fmt: skip
    return compile_model(prepared.model.config, prepared.hardware, old.layout, options)


@contextlib.contextmanager
def shared_by_racks(config: RunConfig) -> Iterator[None]:
    """Hold the Ray cluster, if racks use one, while racks stop and start again."""
    if config.transport != "ray" or config.executor == "timing":
        yield
        return
    from rack.run.membership import MEMBERSHIP  # imports ray: only where it is used

    with MEMBERSHIP.held():
        yield


class Session:
    """A rack with its engine; a context manager that leaves no process behind."""

    def __init__(self, prepared: Prepared, progress: Progress | None = None) -> None:
        self.prepared = prepared
        self.rack = open_rack(prepared, progress)
        self.engine = Engine(self.rack, prepared.tokenizer, prepared.answers)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the chips."""
        self.rack.close()
