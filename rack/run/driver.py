"""The host's side of a rack: sends steps and embeddings, takes results, checks their cycles.

The host port is a chip without computations. Its program for a step sends embedding and RoPE rows
and receives results, through the same link models and checks as on any chip. The rack decides how
messages move while the driver waits (`pump`), and what happens at a deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.kernels import load as load_kernels
from chip.kernels.vmath import (
    inv_frequencies,
    llama3_scaled_inv_freq,
    rope_tables,
    yarn_inv_freq,
)
from chip.ops.cost import CostModel
from chip.ops.rows import row_bytes
from chip.run.chip import Chip, StepMessage
from chip.spec import VECTOR_BYTES
from chip.sram import Sram
from compiler.ir import StepSchedule
from compiler.model.config import ModelConfig
from compiler.model.layer import embedding_scale, embeddings
from compiler.model.rope import LinearRopeScaling, Llama3RopeScaling, YarnRopeScaling
from compiler.model.weights import WeightSource
from compiler.pipeline import CompiledModel
from interconnect.frame import Control
from interconnect.transport import Transport
from rack.run.control import ControlKind
from rack.run.job import chip_links, links_of, programs_of
from rack.run.node import ChipNode, LinkSlots, step_control

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A step's result: logits of every vocabulary column, or (ids, values) of the largest; of an
    encoder's, hidden states."""

    cycles: int  # from this step's base to the next one's; a request's first has its start too
    logits: F32 | None = None  # [vocab]
    top: tuple[NDArray[np.int64], F32] | None = None
    hash_share: int = 0  # sum over the vocabulary, modulo 2^64
    hidden: F32 | None = None  # [rows, hidden] of an encoder, in the order of the rows


def rope_frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """Return the model's rotary frequencies, [head_dim / 2], or none."""
    if config.rope_theta is None:
        return np.empty(0)
    frequencies = inv_frequencies(config.rope_theta, config.head_dim)
    match config.rope_scaling:
        case Llama3RopeScaling() as llama3:
            return llama3_scaled_inv_freq(
                frequencies, llama3.factor, llama3.low_freq_factor, llama3.high_freq_factor,
                llama3.original_max_position_embeddings,
            )  # fmt: skip
        case YarnRopeScaling() as yarn:
            return yarn_inv_freq(
                frequencies, config.rope_theta, yarn.factor, yarn.beta_fast, yarn.beta_slow,
                yarn.original_max_position_embeddings, truncate=yarn.truncate,
            )  # fmt: skip
        case LinearRopeScaling() as linear:
            return frequencies / linear.factor
        case _:
            return frequencies


def rope_rows(
    config: ModelConfig, positions: Sequence[int], frequencies: NDArray[np.float64]
) -> F32:
    """Return the cosines, then the sines, of each position: [rows, head_dim]."""
    tables = rope_tables(positions, frequencies)
    if isinstance(config.rope_scaling, YarnRopeScaling):
        tables = tables * np.float32(config.rope_scaling.attention_factor)
    return tables.reshape(len(positions), config.head_dim)


class Driver:
    """Runs steps on a rack of chips that listen on a transport."""

    def __init__(
        self, compiled: CompiledModel, source: WeightSource, transport: Transport,
        slots: LinkSlots | None = None,
    ) -> None:  # fmt: skip
        self.compiled, self.source = compiled, source
        self.base_cycle = self._starting = 0
        self.sequence = 0
        self._rows = 0  # of the step that runs
        self._frequencies = rope_frequencies(compiled.config)
        self._tables = tuple(embeddings(compiled.config))
        self._scale = np.float32(embedding_scale(compiled.config))
        host = compiled.layout.chips
        links = links_of(compiled, host)
        self.node = ChipNode(links, host, transport, slots or {})
        size = max(step.host.size for step in compiled.steps.values())
        self.memory = Sram(-(-size // VECTOR_BYTES) * VECTOR_BYTES)
        self.node.attach(
            lambda node: Chip(
                "host",
                compiled.chip,
                self.memory,
                chip_links(links),
                load_kernels(),
                node.send,
                CostModel(spec=compiled.chip),
                sequences=compiled.sequences,
            )
        )
        for program in programs_of(compiled, host):
            self.node.chip.load_program(program)

    def reset(self) -> None:
        """Start a request: a new epoch on every node, nothing on the links.

        Its first step begins when all chips have started.
        """
        self.base_cycle = self._starting = self.compiled.network.start_cycles
        control = Control(ControlKind.EPOCH, {"epoch": self.node.epoch + 1})
        for chip in range(self.compiled.layout.chips):
            self.node.transport.send(chip, control)
        self.node.handle(control)

    def start_step(
        self, schedule: StepSchedule, positions: Sequence[int], tokens: Sequence[int],
        types: Sequence[int] = (), slots: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Send step messages to all chips, then the rows' embeddings to the first group.

        `types`: the tokens' kinds, of an encoder. `slots`: of each row, 0 by default.
        """
        config, rows = self.compiled.config, len(positions)
        embedding = self.memory.rows(
            schedule.host.embedding, np.float32, rows, config.hidden_size,
            row_bytes(config.hidden_size, 4),
        )  # fmt: skip
        for row, numbers in enumerate(self._looked_up(positions, tokens, types)):
            first, *others = (
                self.source.f32_rows(name, number, number + 1)[0]
                for name, number in zip(self._tables, numbers, strict=True)
            )
            embedding[row] = sum(others, first)
            if self._scale != 1:
                embedding[row] *= self._scale
        if len(self._frequencies):
            rope = self.memory.rows(
                schedule.host.rope, np.float32, rows, config.head_dim, row_bytes(config.head_dim, 4)
            )
            rope[:] = rope_rows(config, positions, self._frequencies)
        self.sequence += 1
        self._rows = rows
        message = StepMessage(
            sequence=self.sequence, step=schedule.name, base_cycle=self.base_cycle,
            positions=tuple(positions), slots=(0,) * rows if slots is None else tuple(slots),
        )  # fmt: skip
        control = step_control(message)
        for chip in range(self.compiled.layout.chips):
            self.node.transport.send(chip, control)
        self.node.chip.begin(message)
        self.node.chip.advance()

    def _looked_up(
        self, positions: Sequence[int], tokens: Sequence[int], types: Sequence[int]
    ) -> Iterable[tuple[int, ...]]:  # fmt: skip
        """Return, for each row, the numbers of its rows in the embedding tables."""
        if self.compiled.config.encoder is None:
            return ((token,) for token in tokens)
        return zip(tokens, types, positions, strict=True)

    def finish_step(self, schedule: StepSchedule, following: str | None) -> StepResult:
        """Collect the results that have come. Call when the host's program is done."""
        cycles = self.compiled.cycles_until(schedule.name, following)
        self.base_cycle += cycles
        cycles, self._starting = cycles + self._starting, 0
        if schedule.kind.encode:
            return StepResult(cycles=cycles, hidden=self._hidden(schedule))
        if not schedule.kind.decode:
            return StepResult(cycles=cycles)
        share = self.node.chip.checks % (1 << 64)
        if self.compiled.top_k:
            return StepResult(cycles=cycles, top=self._top(schedule), hash_share=share)
        return StepResult(cycles=cycles, logits=self._logits(schedule), hash_share=share)

    def _results(self, schedule: StepSchedule) -> list[tuple[int, tuple[int, int]]]:
        """Return (offset in the host's memory, vocabulary span) of every head chip's result."""
        group = self.compiled.partition.groups[-1]
        spans = dict(zip(group.chips, group.vocab, strict=True))
        return [(offset, spans[chip]) for chip, offset in schedule.host.results.items()]

    def _hidden(self, schedule: StepSchedule) -> F32:
        hidden = self.compiled.config.hidden_size
        first, stride = min(schedule.host.results.values()), row_bytes(hidden, 4)
        return self.memory.rows(first, np.float32, self._rows, hidden, stride).copy()

    def _logits(self, schedule: StepSchedule) -> F32:
        logits = np.empty(self.compiled.config.vocab_size, np.float32)
        for offset, (first, last) in self._results(schedule):
            logits[first:last] = self.memory.view(offset, np.float32, (last - first,), (4,))
        return logits

    def _top(self, schedule: StepSchedule) -> tuple[NDArray[np.int64], F32]:
        ids, values = [], []
        for offset, (first, last) in self._results(schedule):
            k = min(self.compiled.top_k, last - first)
            ids.append(self.memory.view(offset, np.uint32, (k,), (4,)).astype(np.int64))
            values.append(self.memory.view(offset + 4 * k, np.float32, (k,), (4,)).copy())
        return np.concatenate(ids), np.concatenate(values)

    def run_step(
        self, schedule: StepSchedule, positions: Sequence[int], tokens: Sequence[int],
        wait: Callable[[], None], following: str | None = None, types: Sequence[int] = (),
    ) -> StepResult:  # fmt: skip
        """Run one step; `wait` moves messages and returns when the host's program may go on.

        The base of the next step then lies where `following` may begin (`cycles_until`).
        """
        self.start_step(schedule, positions, tokens, types)
        while not self.node.chip.advance():
            wait()
        return self.finish_step(schedule, following)
