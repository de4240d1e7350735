"""The graph: every operation of a Llama once, with shapes that join and weights that exist."""

from __future__ import annotations

import pytest

from compiler.model.graph import Graph, build_graph
from compiler.model.layer import ENTERING, embeddings
from compiler.model.operation import Kind, Split
from compiler.model.presets import PRESETS
from compiler.model.weights import required_tensors


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_tensor_is_used_once(name: str) -> None:
    config = PRESETS[name]
    graph = build_graph(config)
    ops = [op for ops in (*graph.layers, graph.head) for op in ops]
    used = [tensor.name for op in ops for tensor in (*op.tensors, *op.biases)]
    used += [tensor.name for op in ops for _, tensor in op.vectors]
    looked_up = set(embeddings(config))
    wanted = set(required_tensors(config)) | (set() if config.encoder else {"lm_head.weight"})
    assert sorted(used) == sorted(wanted - looked_up)


@pytest.mark.parametrize("name", ["tiny", "llama-8b"])
def test_shapes_are_those_of_the_weights(name: str) -> None:
    config = PRESETS[name]
    shapes = required_tensors(config) | {"lm_head.weight": (config.vocab_size, config.hidden_size)}
    graph = build_graph(config)
    for op in (op for ops in (*graph.layers, graph.head) for op in ops):
        if op.kind is Kind.LINEAR:
            assert {shapes[w][1] for w in op.weights} == {op.in_features}
            assert sum(shapes[w][0] for w in op.weights) == op.features
        elif op.kind is Kind.NORM:
            assert [shapes[w] for w in op.weights] == [(op.features,)]


def check_inputs(graph: Graph) -> None:
    values = set(ENTERING)
    for op in (op for ops in (*graph.layers, graph.head) for op in ops):
        assert set(op.inputs) <= values, op
        values.add(op.output)


def test_inputs_are_made_before_they_are_used() -> None:
    graph = build_graph(PRESETS["tiny"])
    check_inputs(graph)
    assert len(graph.layers) == 3
    assert [op.output for op in graph.layers[0] if op.kind is Kind.ADD] == ["residual"] * 2


def test_what_is_exchanged_is_fp16_and_split() -> None:
    graph = build_graph(PRESETS["tiny"])
    exchanged = [op.name for op in graph.layers[1] if op.dtype == "f16"]
    assert exchanged == [
        "layers.1.self_attn.attend", "layers.1.self_attn.o_proj", "layers.1.mlp.silu",
        "layers.1.mlp.down_proj",
    ]  # fmt: skip
    splits = {op.name: op.split for op in graph.layers[1]}
    assert splits["layers.1.self_attn.qkv_proj"] is Split.QKV
    assert splits["layers.1.mlp.add"] is Split.NONE


def test_a_graph_prints() -> None:
    lines = str(build_graph(PRESETS["tiny"])).splitlines()
    assert len(lines) == 3 * 13 + 2
    assert lines[-1].split() == [
        "lm_head", "linear", "(head.in)", "->", "logits", "[rows,", "320]", "f32,", "vocabulary",
    ]  # fmt: skip
