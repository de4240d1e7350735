"""compiler.model.stored: files that have experts' tensors apart, or joined."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compiler.errors import ModelError
from compiler.model.frontend import load_config
from compiler.model.weights import WeightSource, WeightsRef, required_tensors

GOLDENS = Path(__file__).parent / "goldens"
MOE, MLP = "model.layers.1.block_sparse_moe", "model.layers.1.mlp"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a checkpoint whose experts are joined, to rewrite."""
    shutil.copytree(GOLDENS / "mixtral_odd", tmp_path / "mixtral_odd")
    return tmp_path / "mixtral_odd"


def source(folder: Path) -> WeightSource:
    return WeightsRef.from_folder(load_config(folder), folder).open()


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        source(folder)
    return str(caught.value).removeprefix(f"{folder}/")


def rewrite(folder: Path, change: Any) -> None:
    """Save the tensors as `change` returns them."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """Mixtral's joined tensors as the Hub has them, a matrix an expert."""
    out = {}
    for name, tensor in tensors.items():
        layer = name.partition(".mlp.")[0]
        if name.endswith(".mlp.gate.weight"):
            out[f"{layer}.block_sparse_moe.gate.weight"] = tensor
            continue
        parts = {name: tensor}
        if ".mlp.experts." in name:
            both = len(tensor[0]) // 2
            at = [f"{layer}.block_sparse_moe.experts.{e}" for e in range(len(tensor))]
            if name.endswith("down_proj"):
                parts = {f"{own}.w2.weight": one for own, one in zip(at, tensor, strict=True)}
            else:
                for own, one in zip(at, tensor, strict=True):
                    out[f"{own}.w1.weight"] = np.ascontiguousarray(one[:both])
                    out[f"{own}.w3.weight"] = np.ascontiguousarray(one[both:])
                continue
        out |= {part: np.ascontiguousarray(array) for part, array in parts.items()}
    return out


def test_joined_and_apart_are_the_same(copy: Path) -> None:
    joined = source(GOLDENS / "mixtral_odd")
    rewrite(copy, apart)
    alone = source(copy)
    for name, shape in required_tensors(load_config(copy)).items():
        if len(shape) == 1:
            assert np.array_equal(joined.vector(name), alone.vector(name))
            continue
        assert np.array_equal(joined.f32_rows(name, 0, shape[0]), alone.f32_rows(name, 0, shape[0]))
        some = (name, shape[0] // 3, shape[0] // 2)
        for one, two in zip(joined.int8_rows(*some), alone.int8_rows(*some), strict=True):
            assert np.array_equal(one, two)


def test_a_missing_tensor_is_named_in_the_form_of_the_file(copy: Path) -> None:
    def without(tensors: dict[str, Any], name: str) -> dict[str, Any]:
        return {key: tensor for key, tensor in tensors.items() if key != name}

    rewrite(copy, lambda tensors: without(tensors, f"{MLP}.experts.down_proj"))
    assert refusal(copy) == (
        f"model.safetensors: {MLP}.experts.down_proj: wanted shape [3, 42, 37], got no such tensor"
    )
    shutil.copy(GOLDENS / "mixtral_odd" / "model.safetensors", copy)
    rewrite(copy, lambda tensors: without(apart(tensors), f"{MOE}.experts.2.w2.weight"))
    assert refusal(copy) == (
        f"model.safetensors: {MOE}.experts.2.w2.weight: wanted shape [42, 37], got no such tensor"
    )


def test_a_file_with_both_forms(copy: Path) -> None:
    rewrite(copy, lambda tensors: {**apart(tensors), **tensors})
    assert refusal(copy).endswith(": wanted only tensors of this architecture, got an unknown one")


def test_another_number_of_experts(copy: Path) -> None:
    rewrite(copy, lambda tensors: {n: t[:2] if "experts" in n else t for n, t in tensors.items()})
    assert refusal(copy) == (
        "model.safetensors: model.layers.0.mlp.experts.gate_up_proj: wanted shape [3, 74, 42], "
        "got [2, 74, 42]"
    )


def test_a_value_that_is_not_finite_is_named_in_both_forms(copy: Path) -> None:
    def spoiled(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors[f"{MLP}.experts.gate_up_proj"][2, 37 + 5, 7] = np.nan
        return tensors

    rewrite(copy, spoiled)
    name = f"{MOE}.experts.2.w3.weight"
    with pytest.raises(ModelError) as caught:
        source(copy).int8_rows(name, 0, 37)
    assert str(caught.value) == (
        f"{copy}/model.safetensors: {MLP}.experts.gate_up_proj, as {name}: row 5, column 7: "
        "wanted a finite value, got nan"
    )
