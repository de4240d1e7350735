"""compiler.model.stored: files that have experts' tensors apart, joined, or packed as MXFP4."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int_model import mxfp4 as plain_mxfp4
from safetensors.numpy import load_file, save_file

from compiler.errors import ModelError
from compiler.model.frontend import load_config
from compiler.model.stored import mxfp4
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


# -- gpt-oss: joined, gate and up in turns, [K, columns] or MXFP4

EACH = "model.layers.1.mlp.experts"


def gpt_oss(tmp_path: Path, name: str = "gpt_oss") -> Path:
    shutil.copytree(GOLDENS / name, tmp_path / name)
    return tmp_path / name


def test_values_of_mxfp4() -> None:
    """Every value of OCP's table, at three scales; the low half of a byte comes first."""
    codes = np.arange(16, dtype=np.uint8)
    block = (codes | (15 - codes) << 4)[None, None]
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table += [-value for value in table]
    for scale, power in ((127, 1.0), (126, 0.5), (0, 2.0**-127)):
        got = mxfp4(block, np.array([[scale]], np.uint8))
        assert got.dtype == np.float32
        assert got[0, 0::2].tolist() == [value * power for value in table]
        assert got[0, 1::2].tolist() == [value * power for value in table[::-1]]
    assert np.isnan(mxfp4(block, np.array([[255]], np.uint8))).all()
    blocks = np.zeros((2, 3, 16), np.uint8)
    blocks[1, 2, 15] = 0x70  # the last value of the last block of row 1
    got = mxfp4(blocks, np.full((2, 3), 128, np.uint8))
    assert got.shape == (2, 96)
    assert (np.argwhere(got).tolist(), got[1, 95]) == ([[1, 95]], 12.0)


def test_mxfp4_and_plain_files_are_the_same(tmp_path: Path) -> None:
    packed = gpt_oss(tmp_path)
    shutil.copytree(packed, plain := tmp_path / "plain")

    def unpacked(tensors: dict[str, Any]) -> dict[str, Any]:
        for name in [name for name in tensors if name.endswith("_blocks")]:
            owner = name.removesuffix("_blocks")
            blocks, scales = tensors.pop(name), tensors.pop(f"{owner}_scales")
            values = [plain_mxfp4(*pair).T for pair in zip(blocks, scales, strict=True)]
            tensors[owner] = np.ascontiguousarray(np.stack(values))  # [experts, K, columns]
        return tensors

    rewrite(plain, unpacked)
    one, two = source(packed), source(plain)
    for name, shape in required_tensors(load_config(packed)).items():
        if len(shape) == 1:
            assert np.array_equal(one.vector(name), two.vector(name))
        else:
            some = (name, shape[0] // 3, shape[0] - 1)
            assert np.array_equal(one.f32_rows(*some), two.f32_rows(*some))
            assert np.array_equal(one.f32_rows(name, 5, 5), two.f32_rows(name, 5, 5))


def test_gate_and_up_take_turns(tmp_path: Path) -> None:
    folder = gpt_oss(tmp_path, "gpt_oss_odd")
    stored, read = load_file(folder / "model.safetensors"), source(folder)
    both, bias = (stored[f"{EACH}.gate_up_proj{end}"][2] for end in ("", "_bias"))
    for number, name in enumerate(("gate_proj", "up_proj")):
        at = f"{EACH}.2.{name}"
        assert np.array_equal(read.f32_rows(f"{at}.weight", 3, 30), both.T[number::2][3:30])
        assert np.array_equal(read.vector(f"{at}.bias"), bias[number::2])
    down = stored[f"{EACH}.down_proj"][2].T
    assert np.array_equal(read.f32_rows(f"{EACH}.2.down_proj.weight", 0, len(down)), down)


def test_packed_tensors_that_do_not_match(tmp_path: Path) -> None:
    folder, scales = gpt_oss(tmp_path), "model.layers.0.mlp.experts.down_proj_scales"
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != scales})
    assert refusal(folder) == (
        f"model.safetensors: {scales}: wanted shape [6, 64, 1], got no such tensor"
    )
    shutil.copy(GOLDENS / "gpt_oss" / "model.safetensors", folder)
    rewrite(folder, lambda tensors: {**tensors, scales: tensors[scales].astype(np.float32)})
    assert refusal(folder) == f"model.safetensors: {scales}: wanted U8, got F32"


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    folder = gpt_oss(tmp_path)

    def spoiled(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors[f"{EACH}.gate_up_proj_scales"][3, 2 * 7 + 1, 1] = 255
        return tensors

    rewrite(folder, spoiled)
    name = f"{EACH}.3.up_proj.weight"
    with pytest.raises(ModelError) as caught:
        source(folder).int8_rows(name, 0, 32)
    assert str(caught.value) == (
        f"{folder}/model.safetensors: {EACH}.gate_up_proj_blocks, as {name}: row 7, column 32: "
        "wanted a finite value, got nan"
    )
