"""compiler.model.presets: what is published is what a preset has; names and ids that find it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from published_configs import PUBLISHED

from compiler.errors import ModelError
from compiler.model.frontend import load_config, resolve_model
from compiler.model.presets import GROQ_NAMES, PRESET_OF, PRESETS
from compiler.model.weights import WeightsKind, WeightSource, required_tensors

GOLDENS = Path(__file__).parent / "goldens"
IDS = [(groq, preset) for preset, names in GROQ_NAMES.items() for groq in names]
# Billions of parameters, as the models' pages have them.
PARAMETERS = {
    "llama-8b": 8.03, "llama-70b": 70.55, "llama-3.2-1b": 1.24, "llama-3.2-3b": 3.21,
    "mistral-7b": 7.25, "mixtral-8x7b": 46.7, "gemma2-2b": 2.61, "gemma2-9b": 9.24,
    "gemma2-27b": 27.23, "qwen2.5-7b": 7.62, "qwen2.5-32b": 32.76, "qwen3-8b": 8.19,
    "qwen3-32b": 32.76, "gpt-oss-20b": 20.91, "gpt-oss-120b": 116.83,
}  # fmt: skip


def test_every_preset_of_a_published_decoder_is_held_against_its_page() -> None:
    made_up = {name for name in PRESETS if name.startswith("tiny")}
    encoders = {name for name, config in PRESETS.items() if config.encoder is not None}
    assert set(PUBLISHED) == set(PARAMETERS) == set(PRESETS) - made_up - encoders


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_preset(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    assert replace(load_config(tmp_path), name=name) == PRESETS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    count = sum(math.prod(shape) for shape in required_tensors(PRESETS[name]).values())
    assert round(count / 1e9, 2) == PARAMETERS[name]


@pytest.mark.parametrize(("groq", "preset"), IDS)
def test_an_id_of_groqcloud_is_its_preset(groq: str, preset: str) -> None:
    model = resolve_model(groq)
    assert (model.config, model.folder) == (PRESETS[preset], None)


def test_no_id_has_two_presets() -> None:
    assert len({groq for groq, _ in IDS} | set(PRESETS)) == len(PRESET_OF) == len([*IDS, *PRESETS])


def test_a_folder_with_the_name_of_an_id_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "qwen3-32b").symlink_to(GOLDENS / "gqa")
    model = resolve_model("qwen/qwen3-32b")
    assert model.weights_ref.kind is WeightsKind.SAFETENSORS
    assert model.config.hidden_size == 32


def test_a_cached_model_with_the_name_of_an_id_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "models--qwen--qwen3-32b"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots").mkdir()
    (repo / "snapshots" / "abc").symlink_to(GOLDENS / "gqa")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert resolve_model("qwen/qwen3-32b").weights_ref.kind is WeightsKind.SAFETENSORS
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert resolve_model("qwen/qwen3-32b").config == PRESETS["qwen3-32b"]


def test_the_first_layers_of_a_preset_keep_its_widths() -> None:
    whole, cut = PRESETS["gemma2-9b"], resolve_model("gemma2-9b", layers=3)
    assert cut.config == replace(whole, num_layers=3, windows=(4096, None, 4096))
    assert cut.weights_ref.of_layers == 42
    assert cut.weights_ref.describe() == (
        "SYNTHETIC weights of gemma2-9b, the first 3 of 42 layers (seed 0): text is noise"
    )
    assert cut.notices == (
        "gemma2-9b, the first 3 of 42 layers: neither tokens nor cycles are those of the whole "
        "model",
    )
    shapes = required_tensors(cut.config)
    assert shapes == {
        name: shape
        for name, shape in required_tensors(whole).items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < 3
    }


def test_all_layers_are_the_preset() -> None:
    assert resolve_model("tiny", layers=3) == resolve_model("tiny")


@pytest.mark.parametrize("layers", [0, -1, 4])
def test_layers_that_a_model_has_not_are_refused(layers: int) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model("tiny", layers=layers)
    assert str(caught.value) == f"tiny: layers: wanted 1 to 3, got {layers}"


def test_the_first_layers_of_a_checkpoint() -> None:
    """What the others have is not read, and what no layer has is refused as ever."""
    name, whole = str(GOLDENS / "gqa"), resolve_model(str(GOLDENS / "gqa"))
    cut = resolve_model(name, layers=1)
    source, tensor = cut.weights_ref.open(), "model.layers.0.mlp.down_proj.weight"
    rows = whole.weights_ref.open().f32_rows(tensor, 0, 32)
    np.testing.assert_array_equal(source.f32_rows(tensor, 0, 32), rows)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight: wanted one that"):
        source.f32_rows("model.layers.1.mlp.down_proj.weight", 0, 1)
    assert cut.weights_ref.describe().startswith("weights of gqa, the first 1 of 3 layers from ")
    with pytest.raises(ModelError, match="only tensors of this architecture"):
        replace(cut.weights_ref, of_layers=None).open()


def test_repeated_weights_are_the_same_in_layers_of_a_kind() -> None:
    model = resolve_model("gemma2-2b", weights="repeat", seed=5, layers=4)
    source, once = model.weights_ref.open(), resolve_model("gemma2-2b", seed=5).weights_ref.open()

    def rows(source: WeightSource, layer: int) -> list[float]:
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        norm = source.vector(f"model.layers.{layer}.input_layernorm.weight")
        return [*source.f32_rows(name, 7, 9).flat, *norm]

    first, second = rows(once, 0), rows(once, 1)  # with a window and without
    assert first != second
    assert [rows(source, layer) for layer in range(4)] == [first, second, first, second]
    assert rows(once, 2) != first
    assert model.weights_ref.describe() == (
        "SYNTHETIC weights of gemma2-2b, the first 4 of 26 layers (seed 5, the same in all layers "
        "of a kind): text is noise"
    )


def test_a_folder_s_model_on_repeated_weights() -> None:
    model = resolve_model(str(GOLDENS / "gqa"), weights="repeat")
    assert (model.folder, model.weights_ref.repeat) == (GOLDENS / "gqa", True)
    assert model.weights_ref.kind is WeightsKind.SYNTHETIC


def test_weights_under_an_id_are_checked_as_the_preset_s(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["gemma2-9b"]))
    model = resolve_model("gemma2-9b-it", weights=tmp_path)
    assert (model.config, model.folder) == (PRESETS["gemma2-9b"], tmp_path)
    other = {**PUBLISHED["gemma2-9b"], "query_pre_attn_scalar": 144}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ModelError) as caught:
        resolve_model("gemma2-9b-it", weights=tmp_path)
    wanted = "attention_scale: wanted None as in gemma2-9b, got 0.08333333333333333"
    assert str(caught.value) == f"{tmp_path / 'config.json'}: {wanted}"
