"""compiler.model.weights: rows and vectors from safetensors and from a seed; files that lie."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chip.kernels.packed import quantize_groups, unpack
from chip.kernels.quant import quantize_weight
from compiler.errors import ModelError
from compiler.model.frontend import load_config
from compiler.model.layer import EMBEDDING, LM_HEAD
from compiler.model.presets import PRESETS
from compiler.model.weights import WeightSource, WeightsRef, required_tensors

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ["gqa", "mha_untied", "rope_llama3", "head_dim", "sharded"]
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"


def tensors(folder: Path) -> dict[str, Any]:
    """Read every tensor the plain way."""
    loaded: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        loaded |= load_file(path)
    return loaded


def source(folder: Path) -> WeightSource:
    """Open a golden checkpoint, through pickle, as another process would."""
    ref = WeightsRef.from_folder(load_config(folder), folder)
    return pickle.loads(pickle.dumps(ref)).open()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of a checkpoint to damage."""
    shutil.copytree(GOLDENS / "gqa", tmp_path / "gqa")
    return tmp_path / "gqa"


def refusal(folder: Path) -> str:
    """Give what opening says, without the folder's name."""
    with pytest.raises(ModelError) as caught:
        source(folder)
    return str(caught.value).replace(f"{folder}/", "")


def rewrite(folder: Path, **changes: Any) -> None:
    """Save the checkpoint again; a change to None removes the tensor, `__` stands for a dot."""
    path = folder / "model.safetensors"
    renamed = {name.replace("__", "."): value for name, value in changes.items()}
    merged = {**load_file(path), **renamed}
    save_file({name: value for name, value in merged.items() if value is not None}, path)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_reads_back(name: str) -> None:
    folder, opened = GOLDENS / name, source(GOLDENS / name)
    stored = tensors(folder)
    for tensor, shape in required_tensors(load_config(folder)).items():
        wanted = stored[tensor].astype(np.float32)
        if len(shape) == 1:
            got = opened.vector(tensor)
        else:
            got = np.concatenate(
                [opened.f32_rows(tensor, 0, 5), opened.f32_rows(tensor, 5, shape[0])]
            )
        assert got.dtype == np.float32
        assert np.array_equal(got, wanted)


def test_bf16_is_widened_exactly(copy: Path) -> None:
    values = np.linspace(-3, 3, 32).astype(ml_dtypes.bfloat16)
    rewrite(copy, model__norm__weight=values)
    assert np.array_equal(source(copy).vector(NORM), values.astype(np.float64))


def test_an_empty_share_has_no_rows() -> None:
    opened = source(GOLDENS / "gqa")
    assert opened.f32_rows(DOWN, 7, 7).shape == (0, 60)
    values, scales = opened.int8_rows(DOWN, 7, 7)
    assert (values.shape, scales.shape) == ((0, 60), (0,))


@pytest.mark.parametrize("block", [1, 180, 1 << 22])
def test_int8_rows_do_not_depend_on_the_slice(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.model.weights._BLOCK_ELEMENTS", block)
    opened = source(GOLDENS / "gqa")
    wanted, wanted_scales = quantize_weight(opened.f32_rows(DOWN, 0, 32))
    values, scales = opened.int8_rows(DOWN, 3, 20)
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)
    assert np.array_equal(values, wanted[3:20])
    assert np.array_equal(scales, wanted_scales[3:20])


@pytest.mark.parametrize("block", [1, 70, 1 << 22])
def test_int4_rows_do_not_depend_on_the_slice(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.model.weights._BLOCK_ELEMENTS", block)
    opened = source(GOLDENS / "gqa")
    wanted, wanted_scales = quantize_groups(opened.f32_rows(DOWN, 0, 32), 32)
    values, scales = opened.int4_rows(DOWN, 3, 20, 32)
    assert np.array_equal(values, wanted[3:20])
    assert np.array_equal(scales, wanted_scales[:, 3:20])
    block_of = np.zeros((1, 9, 320), np.int8)
    assert np.array_equal(opened.fill_int4(DOWN, 3, 20, 32, block_of, 1), scales)
    assert np.array_equal(unpack(block_of, 18)[0, 1:, : values.shape[1]], values)


def test_a_tied_head_is_the_embedding(copy: Path) -> None:
    # Even where the file has a head of its own: that is what transformers does.
    rewrite(copy, lm_head__weight=np.zeros((97, 32), np.float32))
    opened = source(copy)
    embedding = opened.f32_rows("model.embed_tokens.weight", 10, 20)
    assert embedding.any()
    assert np.array_equal(opened.f32_rows(LM_HEAD, 10, 20), embedding)


def test_a_head_that_is_not_read_is_said(copy: Path) -> None:
    assert source(copy).notices == ()
    rewrite(copy, lm_head__weight=np.zeros((97, 32), np.float32))
    assert source(copy).notices == (
        f"{copy / 'model.safetensors'}: lm_head.weight is not read: tie_word_embeddings says that "
        "the embedding is the head",
    )


def test_an_untied_head_is_its_own() -> None:
    opened = source(GOLDENS / "sharded")
    assert not np.array_equal(
        opened.f32_rows(LM_HEAD, 0, 9), opened.f32_rows("model.embed_tokens.weight", 0, 9)
    )


def test_rows_are_the_callers_own() -> None:
    opened = source(GOLDENS / "gqa")
    opened.f32_rows(DOWN, 0, 4)[:] = 0
    assert opened.f32_rows(DOWN, 0, 4).any()


def test_one_file_wins_over_an_index(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text("no JSON, and not read")
    assert source(copy).vector(NORM).shape == (32,)


def test_descriptions_say_where_the_numbers_come_from() -> None:
    folder = GOLDENS / "gqa"
    assert source(folder).describe() == f"weights of gqa from {folder}"
    synthetic = WeightsRef.synthetic(PRESETS["tiny"], 3)
    assert synthetic.describe() == "SYNTHETIC weights of tiny (seed 3): text is noise"
    assert synthetic.open().describe() == synthetic.describe()


def test_synthetic_rows_do_not_depend_on_the_slice() -> None:
    opened = pickle.loads(pickle.dumps(WeightsRef.synthetic(PRESETS["tiny"], 3))).open()
    whole, whole_scales = opened.int8_rows(DOWN, 0, 64)
    part, part_scales = opened.int8_rows(DOWN, 16, 48)
    assert (whole.shape, whole.dtype, whole_scales.dtype) == ((64, 172), np.int8, np.float32)
    assert np.array_equal(whole[16:48], part)
    assert np.array_equal(whole_scales[16:48], part_scales)
    whole, whole_scales = opened.int4_rows(DOWN, 0, 64, 64)
    part, part_scales = opened.int4_rows(DOWN, 16, 48, 64)
    assert (whole.shape, whole.dtype, whole_scales.shape) == ((64, 172), np.int8, (5, 64))
    assert np.array_equal(whole[16:48], part)
    assert np.array_equal(whole_scales[:, 16:48], part_scales)
    block = np.zeros((1, 32, 320), np.int8)
    assert np.array_equal(opened.fill_int4(DOWN, 0, 64, 64, block, 0), whole_scales)
    assert np.array_equal(unpack(block, 64)[0, :, :172], whole)
    rows = opened.f32_rows(DOWN, 0, 64)
    assert (rows.shape, rows.dtype) == ((64, 172), np.float32)
    assert np.array_equal(opened.f32_rows(DOWN, 16, 48), rows[16:48])
    assert opened.vector(NORM).shape == (64,)


def test_synthetic_seeds_and_tensors_differ() -> None:
    one, two = (WeightsRef.synthetic(PRESETS["tiny"], seed).open() for seed in (1, 2))
    rows = one.int8_rows(DOWN, 0, 64)[0]
    assert not np.array_equal(rows, two.int8_rows(DOWN, 0, 64)[0])
    assert not np.array_equal(rows, one.int8_rows(DOWN.replace(".1.", ".0."), 0, 64)[0])


def test_a_synthetic_tied_head_is_the_embedding() -> None:
    config = replace(PRESETS["tiny"], tie_word_embeddings=True)
    opened = WeightsRef.synthetic(config, 1).open()
    head = opened.int8_rows(LM_HEAD, 4, 9)
    embedding = opened.int8_rows("model.embed_tokens.weight", 4, 9)
    assert np.array_equal(head[0], embedding[0])
    assert np.array_equal(head[1], embedding[1])


@pytest.mark.parametrize(
    "ref",
    [
        WeightsRef.synthetic(PRESETS["tiny"], 1),
        WeightsRef.from_folder(load_config(GOLDENS / "gqa"), GOLDENS / "gqa"),
    ],
    ids=["synthetic", "safetensors"],
)
def test_an_unknown_name_is_refused(ref: WeightsRef) -> None:
    opened = ref.open()
    message = "tensor model.layers.9.x: wanted one that the model has, got an unknown name"
    for read in (
        lambda: opened.vector("model.layers.9.x"),
        lambda: opened.f32_rows("model.layers.9.x", 0, 1),
    ):
        with pytest.raises(ModelError) as caught:
            read()
        assert str(caught.value) == message


def test_no_files_at_all(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert refusal(copy) == (
        f"{copy}: wanted model.safetensors or model.safetensors.index.json, got neither"
    )


def test_a_truncated_file_says_how_long_it_should_be(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert refusal(copy).startswith(
        "model.safetensors: wanted a whole safetensors file of 122240 bytes, got 121240 bytes ("
    )


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0"])
def test_a_file_that_is_no_safetensors(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    wanted = f"model.safetensors: wanted a whole safetensors file, got {len(content)} bytes ("
    assert refusal(copy).startswith(wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, f"{NORM}: wanted shape [32], got no such tensor"),
        (
            {"model__norm__weight": np.ones(31, np.float32)},
            f"{NORM}: wanted shape [32], got [31]",
        ),
        (
            {"model__layers__1__mlp__down_proj__weight": np.ones((60, 32), np.float32)},
            f"{DOWN}: wanted shape [32, 60], got [60, 32]",
        ),
        (
            {"model__norm__weight": np.ones(32, np.int8)},
            f"{NORM}: wanted F32 or F16 or BF16, got I8",
        ),
        (
            {"model__layers__0__self_attn__q_proj__bias": np.ones(32, np.float32)},
            "model.layers.0.self_attn.q_proj.bias: wanted only tensors of this architecture, "
            "got an unknown one",
        ),
    ],
)
def test_tensors_that_do_not_match(copy: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(copy, **changes)
    assert refusal(copy) == f"model.safetensors: {message}"


@pytest.mark.parametrize("dtype", ["F64", "I8", "BOOL", "F8_E4M3", "F4"])
def test_types_that_are_no_weights(copy: Path, dtype: str) -> None:
    path = copy / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[NORM] |= {"dtype": dtype, "shape": [{"F64": 16, "F4": 256}.get(dtype, 128)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert refusal(copy) == f"model.safetensors: {NORM}: wanted F32 or F16 or BF16, got {dtype}"


def test_a_tensor_that_a_header_has_twice(copy: Path) -> None:
    path = copy / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip()
    entry = json.dumps(json.loads(text)[NORM])
    text = text[:-1] + f', "{NORM}": {entry}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert refusal(copy) == f"model.safetensors: {NORM}: wanted the key once, got it more than once"


@pytest.mark.parametrize("offsets", ["7", "[0]", '["0", "x"]', "[null, null]", "[0, 1e400]", "{}"])
def test_offsets_of_odd_forms(copy: Path, offsets: str) -> None:
    text = f'{{"{NORM}": {{"dtype": "F32", "shape": [1], "data_offsets": {offsets}}}}}'.encode()
    (copy / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert refusal(copy).startswith("model.safetensors: wanted a whole safetensors file, got ")


def test_redundant_tensors_of_old_checkpoints_are_ignored(copy: Path) -> None:
    rewrite(copy, model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(4, np.float32))
    assert source(copy).vector(NORM).shape == (32,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(copy: Path, bad: float) -> None:
    embedding = load_file(copy / "model.safetensors")["model.embed_tokens.weight"].copy()
    embedding[50, 3] = bad
    norm = np.full(32, bad, np.float32)
    rewrite(copy, model__norm__weight=norm, model__embed_tokens__weight=embedding)
    opened = source(copy)
    message = f"{copy / 'model.safetensors'}: {{}}: wanted a finite value, got {bad}"
    with pytest.raises(ModelError) as caught:
        opened.vector(NORM)
    assert str(caught.value) == message.format(f"{NORM}: element 0")
    opened.f32_rows(LM_HEAD, 0, 50)  # rows that are not asked for are not looked at
    for read in (
        lambda: opened.int8_rows(LM_HEAD, 40, 97),
        lambda: opened.f16_rows(LM_HEAD, 50, 51),
        lambda: opened.check_finite(EMBEDDING),
    ):
        with pytest.raises(ModelError) as caught:
            read()
        assert str(caught.value) == message.format(f"{EMBEDDING}: row 50, column 3")


def test_values_that_fp16_does_not_hold(copy: Path) -> None:
    down = load_file(copy / "model.safetensors")[DOWN].copy()
    down[2, 3], down[7, 5] = 65504, -65505
    rewrite(copy, model__layers__1__mlp__down_proj__weight=down)
    opened = source(copy)
    rows = opened.f16_rows(DOWN, 0, 7)
    assert rows.dtype == np.float16
    assert np.array_equal(rows, down[:7].astype(np.float16))
    assert rows[2, 3] == 65504
    with pytest.raises(ModelError) as caught:
        opened.f16_rows(DOWN, 6, 32)
    path = copy / "model.safetensors"
    assert str(caught.value) == (
        f"{path}: {DOWN}: row 7, column 5: wanted at most 65504 for fp16, got -65505.0"
    )
    opened.int8_rows(DOWN, 0, 32)  # int8 has a scale
    synthetic = WeightsRef.synthetic(PRESETS["tiny"], 3).open()
    assert np.array_equal(
        synthetic.f16_rows(DOWN, 3, 9), synthetic.f32_rows(DOWN, 3, 9).astype(np.float16)
    )
    synthetic.check_finite(EMBEDDING)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_every_type_is_looked_through(
    copy: Path, kind: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compiler.model.weights._BLOCK_ELEMENTS", 100)  # blocks of three rows
    table = load_file(copy / "model.safetensors")[EMBEDDING].astype(getattr(ml_dtypes, kind, kind))
    table[1, 1] = np.finfo(np.float16).max
    rewrite(copy, model__embed_tokens__weight=table)
    source(copy).check_finite(EMBEDDING)
    table[96, 31] = bad
    rewrite(copy, model__embed_tokens__weight=table)
    with pytest.raises(ModelError, match="row 96, column 31: wanted a finite value, got"):
        source(copy).check_finite(EMBEDDING)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "wanted valid JSON, got Expecting property name enclosed in double quotes"),
        ("[]", "wanted a JSON object, got list"),
        ("{}", "wanted an object with a weight_map, got none"),
        (
            '{"weight_map": {}}',
            "weight_map: wanted the file name of model.embed_tokens.weight, got nothing",
        ),
        ('{"weight_map": []}', "wanted an object with a weight_map, got none"),
        (
            '{"weight_map": {"model.embed_tokens.weight": "../secret"}}',
            "weight_map: wanted the file name of model.embed_tokens.weight, got '../secret'",
        ),
    ],
)
def test_an_index_that_lies(tmp_path: Path, content: str, message: str) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(GOLDENS / "sharded", folder)
    (folder / "model.safetensors.index.json").write_text(content)
    got = refusal(folder).replace("model.safetensors.index.json: ", "")
    assert got.startswith(message)


def test_a_missing_shard_and_a_shard_without_its_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(GOLDENS / "sharded", folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][LM_HEAD] = "model-00001-of-00004.safetensors"
    index.write_text(json.dumps(content))
    assert refusal(folder) == (
        "model-00001-of-00004.safetensors: lm_head.weight: wanted shape [131, 48], "
        "got no such tensor"
    )
    (folder / "model-00001-of-00004.safetensors").unlink()
    assert refusal(folder) == "model-00001-of-00004.safetensors: wanted a file, got nothing"


def test_a_tensor_in_two_shards_and_one_that_only_the_index_has(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(GOLDENS / "sharded", folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first, *_, last = sorted({*content["weight_map"].values()})
    tensors, others = load_file(folder / last), load_file(folder / first)
    name = sorted(others)[0]
    save_file({**tensors, name: others[name]}, folder / last)
    assert refusal(folder) == f"{last}: {name}: wanted it in one file, got it in {first} too"
    save_file(tensors, folder / last)
    content["weight_map"]["model.layers.0.mlp.up_proj.bias"] = "model-00005-of-00004.safetensors"
    index.write_text(json.dumps(content))
    assert refusal(folder) == "model-00005-of-00004.safetensors: wanted a file, got nothing"
    (folder / "model.safetensors").symlink_to(first + ".gone")
    assert refusal(folder).startswith("model.safetensors: wanted a file, got a link to ")
