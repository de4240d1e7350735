"""The model as a graph of operations with shapes and provenance, before any chip is named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from compiler.model.config import ModelConfig
from compiler.model.layer import head, layer
from compiler.model.operation import GraphOp


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A model: the operations of each layer, then those of the head."""

    config: ModelConfig
    layers: tuple[tuple[GraphOp, ...], ...]
    head: tuple[GraphOp, ...]

    def __str__(self) -> str:
        return "\n".join(str(op) for ops in (*self.layers, self.head) for op in ops)


@lru_cache(maxsize=8)  # a search for a layout asks for few graphs, each often
def build_graph(config: ModelConfig) -> Graph:
    """Build the graph of a model: every layer, then the head."""
    layers = tuple(layer(config, index) for index in range(config.num_layers))
    return Graph(config=config, layers=layers, head=head(config))
