"""compiler.model.frontend: what a config.json says, what is refused and in which words."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import ModelError
from compiler.model.architecture import ARCHITECTURES, ENCODERS, LLAMA
from compiler.model.config import Experts
from compiler.model.frontend import (
    PRESETS,
    ModelConfig,
    load_config,
    resolve_model,
)
from compiler.model.rope import YarnRopeScaling
from compiler.model.weights import WeightsKind, required_tensors

GOLDENS = Path(__file__).parent / "goldens"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# As published on the Hub for meta-llama/Llama-3.1-70B-Instruct.
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 8192,
    "initializer_range": 0.02,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA3,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}
EVERY = {**ARCHITECTURES, **ENCODERS}
NAMES = (
    "one of Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma2 or GptOss + 'ForCausalLM', "
    "or BertModel or BertForMaskedLM"
)
TYPES = " or ".join(dict.fromkeys(repr(one.model_type) for one in EVERY.values()))
LLAMA_8B = {
    **LLAMA_70B,
    "eos_token_id": 128001,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}


def write_config(folder: Path, base: dict[str, Any] = LLAMA_8B, **changes: Any) -> Path:
    """Write a config.json; a change to `...` removes the key."""
    folder.mkdir(exist_ok=True)
    config = {**base, **changes}
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(folder: Path, **changes: Any) -> str:
    """Give what load_config says about a changed Llama 3.1 8B, without the file's name."""
    with pytest.raises(ModelError) as caught:
        load_config(write_config(folder, **changes))
    return str(caught.value).removeprefix(f"{folder / 'config.json'}: ")


@pytest.mark.parametrize(
    ("preset", "published"), [("llama-8b", LLAMA_8B), ("llama-70b", LLAMA_70B)]
)
def test_presets_are_the_published_configurations(
    tmp_path: Path, preset: str, published: dict[str, Any]
) -> None:
    assert load_config(write_config(tmp_path / preset, published)) == PRESETS[preset]


@pytest.mark.parametrize(("preset", "billions"), [("llama-8b", 8.03), ("llama-70b", 70.55)])
def test_presets_have_the_published_number_of_parameters(preset: str, billions: float) -> None:
    shapes = required_tensors(PRESETS[preset]).values()
    total = sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes)
    assert round(total / 1e9, 2) == billions


def test_old_and_new_rope_keys_agree(tmp_path: Path) -> None:
    old = load_config(write_config(tmp_path))
    new = {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}
    assert load_config(write_config(tmp_path, rope_theta=..., rope_scaling=..., **new)) == old
    legacy = {**LLAMA3, "type": "llama3", "rope_type": ...}
    legacy = {key: value for key, value in legacy.items() if value is not ...}
    assert load_config(write_config(tmp_path, rope_scaling=legacy)) == old


def test_default_rope_type_is_no_scaling(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000}
    config = load_config(
        write_config(tmp_path, rope_theta=..., rope_scaling=..., rope_parameters=rope)
    )
    assert config.rope_scaling is None
    assert repr(config.rope_theta) == "10000.0"  # an int in the file must not change a hash


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    keys = ("num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "head_dim")
    absent = dict.fromkeys((*keys, "tie_word_embeddings", "bos_token_id", "eos_token_id"), ...)
    config = load_config(write_config(tmp_path, **absent))
    assert (config.num_kv_heads, config.head_dim) == (32, 128)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 10000.0, None)
    assert config.tie_word_embeddings is False
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())


@pytest.mark.parametrize("named", [{"architectures": None}, {"architectures": []}])
def test_model_type_says_what_architectures_does_not(tmp_path: Path, named: dict[str, Any]) -> None:
    assert load_config(write_config(tmp_path / "llama-8b", **named)) == PRESETS["llama-8b"]


def test_defaults_are_said(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", max_position_embeddings=..., rope_theta=None)
    model = resolve_model(str(folder))
    assert model.config.max_position_embeddings == 2048
    assert model.notices == (
        f"{folder / 'config.json'} leaves keys out; transformers' defaults are used: "
        "max_position_embeddings 2048, rope_theta 10000.0",
    )
    assert load_config(write_config(folder, vocab_size=..., bos_token_id=1, eos_token_id=2)) == (
        replace(load_config(write_config(folder, bos_token_id=1, eos_token_id=2)), vocab_size=32000)
    )
    assert resolve_model(str(write_config(folder))).notices == ()


def test_a_byte_order_mark_and_whole_floats_mean_the_same(tmp_path: Path) -> None:
    numbers = {key: float(value) for key, value in LLAMA_70B.items() if type(value) is int}
    numbers["eos_token_id"] = [float(token) for token in LLAMA_70B["eos_token_id"]]
    numbers["rope_scaling"] = {**LLAMA3, "original_max_position_embeddings": 8192.0}
    folder = write_config(tmp_path / "llama-70b", LLAMA_70B, hidden_act="swish", **numbers)
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    config = load_config(folder)
    assert config == PRESETS["llama-70b"]
    assert config.to_dict() == PRESETS["llama-70b"].to_dict()
    assert repr(config) == repr(PRESETS["llama-70b"])  # an integer is no float


def test_a_generation_config_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    path = folder / "generation_config.json"
    for content, message in (
        (
            '{"eos_token_id": "2"}',
            "eos_token_ids: wanted a token id below vocab_size 128256, got '2'",
        ),
        ("[]", "wanted a JSON object, got list"),
    ):
        path.write_text(content)
        with pytest.raises(ModelError) as caught:
            load_config(folder)
        assert str(caught.value) == f"{path}: {message}"
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(ModelError, match="a link to nowhere, which is not there"):
        load_config(folder)


def test_explicit_head_dim_wins() -> None:
    config = load_config(GOLDENS / "head_dim")
    assert config.hidden_size // config.num_heads == 16
    assert (config.head_dim, config.q_size, config.kv_size) == (12, 60, 12)


def test_generation_config_decides_eos(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [128001, 128009]}')
    assert load_config(folder).eos_token_ids == (128001, 128009)
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    assert load_config(folder).eos_token_ids == (128001,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            f"architectures: wanted {NAMES}, got ['MambaForCausalLM']",
        ),
        (
            {"architectures": ..., "model_type": ...},
            f"architectures: wanted {NAMES}, got None",
        ),
        ({"model_type": "mistral"}, "model_type: wanted 'llama', got 'mistral'"),
        (
            {"architectures": None, "model_type": "mamba"},
            f"model_type: wanted {TYPES}, got 'mamba'",
        ),
        ({"attention_bias": "yes"}, "attention_bias: wanted a bool, got 'yes'"),
        ({"attention_bias": 0}, "attention_bias: wanted a bool, got 0"),
        ({"pretraining_tp": True}, "pretraining_tp: wanted 1, got True"),
        ({"mlp_bias": 1}, "mlp_bias: wanted a bool, got 1"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: wanted None, got 50.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: wanted None, got 30.0"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar: wanted None, got 256"),
        ({"num_local_experts": 8}, "num_local_experts: wanted None, got 8"),
        ({"hidden_act": "gelu"}, "hidden_act: wanted 'silu', got 'gelu'"),
        ({"sliding_window": 4096}, "sliding_window: wanted None, got 4096"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config: wanted None (give the checkpoint that this one was made of: "
            "--dtype int8 or int4 rounds it), got {'bits': 4}",
        ),
        *(
            (
                {"quantization_config": {"quant_method": method}},
                f"quantization_config: wanted None (give the checkpoint that this {method} one was "
                f"made of: --dtype int8 or int4 rounds it), got {{'quant_method': '{method}'}}",
            )
            for method in ("gptq", "awq", "compressed-tensors", "bitsandbytes", "fp8")
        ),
        ({"pretraining_tp": 2}, "pretraining_tp: wanted 1, got 2"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: wanted 1, got 0.5"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: wanted 'full_attention' only, got 'sliding_attention'",
        ),
        ({"layer_types": 7}, "layer_types: wanted 'full_attention' only, got 7"),
        ({"hidden_size": ...}, "hidden_size: wanted a positive integer, got nothing"),
        ({"vocab_size": "many"}, "vocab_size: wanted a positive integer, got 'many'"),
        ({"vocab_size": "128256"}, "vocab_size: wanted a positive integer, got '128256'"),
        ({"vocab_size": True}, "vocab_size: wanted a positive integer, got True"),
        ({"vocab_size": 0.5}, "vocab_size: wanted a positive integer, got 0.5"),
        ({"num_hidden_layers": 10**9}, "num_layers: wanted at most 256, got 1000000000"),
        (
            {"max_position_embeddings": 10**400},
            "max_position_embeddings: wanted at most 16777216, got 100000000000000000...",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers: wanted a positive integer, got 0"),
        ({"head_dim": -128}, "head_dim: wanted a positive integer, got -128"),
        (
            {"num_attention_heads": 24},
            "head_dim: wanted a head_dim, as hidden_size 4096 is not a multiple of 24 heads, "
            "got nothing",
        ),
        ({"head_dim": 127}, "head_dim: wanted an even number (RoPE turns pairs), got 127"),
        (
            {"num_key_value_heads": 5},
            "num_kv_heads: wanted a divisor of num_heads 32, got 5",
        ),
        ({"num_key_value_heads": 0}, "num_kv_heads: wanted a positive integer, got 0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: wanted a positive number, got 'small'"),
        (
            {"rms_norm_eps": 10**400},
            "rms_norm_eps: wanted a number from 1.18e-38 to 1.7e+38, got 100000000000000000...",
        ),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: wanted a positive number, got nan"),
        ({"rope_theta": -1.0}, "rope_theta: wanted a positive number, got -1.0"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: wanted a bool, got 1"),
        (
            {"bos_token_id": 128256},
            "bos_token_id: wanted a token id below vocab_size 128256, got 128256",
        ),
        (
            {"eos_token_id": [1, -1]},
            "eos_token_ids: wanted a token id below vocab_size 128256, got -1",
        ),
        (
            {"eos_token_id": {"id": 1}},
            "eos_token_ids: wanted a token id below vocab_size 128256, got {'id': 1}",
        ),
    ],
)
def test_what_a_config_may_not_say(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    line, message = refusal(tmp_path, **changes), message.removesuffix("...")
    assert line == message or (len(message) > 60 and line.startswith(message))
    assert len(line) < 200


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ("yarn", "rope_scaling: wanted an object, got 'yarn'"),
        (
            {"rope_type": "longrope"},
            "rope_scaling.rope_type: wanted 'default' or 'linear' or 'dynamic' or 'yarn' or "
            "'llama3', got 'longrope'",
        ),
        ({"rope_type": "yarn"}, "rope_scaling: wanted all of ['factor'], got no ['factor']"),
        ({"rope_type": "linear"}, "rope_scaling: wanted all of ['factor'], got no ['factor']"),
        (
            {"rope_type": "dynamic", "factor": 2.0, "low_freq_factor": 1.0},
            "rope_scaling: wanted only ['factor', 'partial_rotary_factor', 'rope_theta', "
            "'rope_type', 'type'], got unknown ['low_freq_factor']",
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale": "1"},
            "rope_scaling.mscale: wanted a positive number, got '1'",
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "beta_slow": 32.0},
            "rope_scaling.beta_fast: wanted more than beta_slow 32.0, got 32.0",
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "truncate": 0},
            "rope_scaling: truncate: wanted a bool, got 0",
        ),
        ({"rope_type": "linear", "factor": 0.5}, "rope_scaling.factor: wanted at least 1, got 0.5"),
        (
            {"type": "default", "attention_factor": 2},
            "rope_scaling: wanted only ['partial_rotary_factor', 'rope_theta', 'rope_type', "
            "'type'], got unknown ['attention_factor']",
        ),
        (
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            "rope_scaling.partial_rotary_factor: wanted 1, got 0.5",
        ),
        (
            {**LLAMA3, "rope_theta": 10000.0},
            "rope_theta: wanted rope_scaling.rope_theta 10000.0, got 500000.0",
        ),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            "rope_scaling: wanted all of ['factor', 'low_freq_factor', 'high_freq_factor', "
            "'original_max_position_embeddings'], got no ['high_freq_factor', "
            "'original_max_position_embeddings']",
        ),
        (
            {"rope_type": "default", "partial_rotary_factor": True},
            "rope_scaling.partial_rotary_factor: wanted 1, got True",
        ),
        ({**LLAMA3, "factor": 0.5}, "rope_scaling.factor: wanted at least 1, got 0.5"),
        ({**LLAMA3, "factor": "8"}, "rope_scaling: factor: wanted a positive number, got '8'"),
        (
            {**LLAMA3, "low_freq_factor": 4.0},
            "rope_scaling.high_freq_factor: wanted more than low_freq_factor 4.0, got 4.0",
        ),
        (
            {**LLAMA3, "original_max_position_embeddings": 0.5},
            "rope_scaling: original_max_position_embeddings: wanted a positive integer, got 0.5",
        ),
    ],
)
def test_what_rope_scaling_may_not_say(tmp_path: Path, rope: object, message: str) -> None:
    assert refusal(tmp_path, rope_scaling=rope) == message


QWEN = {**LLAMA_8B, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN |= {"num_hidden_layers": 4, "rope_scaling": None, "sliding_window": 512}
ALTERNATE = ("sliding_attention", "full_attention")
MISTRAL = {**QWEN, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
MIXTRAL = {**QWEN, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
GEMMA = {**QWEN, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 256}
GEMMA |= {"hidden_activation": "gelu_pytorch_tanh"}
GPT_OSS = {**QWEN, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}
GPT_OSS |= {"head_dim": 64, "swiglu_limit": 7.0, "attention_bias": True}


@pytest.mark.parametrize(
    ("base", "changes", "windows"),
    [
        (QWEN, {}, ()),
        (QWEN, {"use_sliding_window": True}, ()),  # from layer 28 on
        (QWEN, {"use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 512)),
        (
            QWEN,
            {
                "use_sliding_window": True,
                "layer_types": [*ALTERNATE, *ALTERNATE],
            },
            (512, None, 512, None),
        ),
        (MISTRAL, {}, (512,) * 4),
        (MISTRAL, {"sliding_window": ...}, (4096,) * 4),
        (MISTRAL, {"sliding_window": None}, ()),
        (MISTRAL, {"sliding_window": 131072}, ()),  # no less than all positions
        (MISTRAL, {"layer_types": ["sliding_attention"]}, (512,) * 4),
        (MIXTRAL, {}, (512,) * 4),
        (MIXTRAL, {"sliding_window": ...}, ()),
        (GPT_OSS, {}, (512, None, 512, None)),
        (
            GPT_OSS,
            {"sliding_window": ..., "layer_types": [*ALTERNATE, *ALTERNATE[::-1]]},
            (128, None, None, 128),
        ),
        (GEMMA, {}, (512, None, 512, None)),
        (GEMMA, {"sliding_window": ...}, (4096, None, 4096, None)),
        (
            GEMMA,
            {"layer_types": [*["full_attention"] * 3, "sliding_attention"]},
            (None, None, None, 512),
        ),
    ],
)
def test_windows_are_read_as_transformers_reads_them(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    config = load_config(write_config(tmp_path, base, **changes))
    assert config.windows == windows
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ("windows" in config.to_dict()) == bool(windows)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (QWEN, {"use_sliding_window": 1}, "use_sliding_window: wanted a bool, got 1"),
        (
            QWEN,
            {"use_sliding_window": True, "max_window_layers": "3"},
            "max_window_layers: wanted an integer from 0 on, got '3'",
        ),
        (
            GEMMA,
            {"query_pre_attn_scalar": 10**39},
            f"query_pre_attn_scalar: wanted a number from 1.18e-38 to 1.7e+38, got {10**39}",
        ),
        (
            MISTRAL,
            {"num_hidden_layers": 10**12},  # and no window for each of them is made
            "num_layers: wanted at most 256, got 1000000000000",
        ),
        (QWEN, {"attention_bias": True}, "attention_bias: wanted False, got True"),
        (
            QWEN,
            {"layer_types": ["sliding_attention"] * 4},
            "layer_types: wanted 'full_attention' only, got 'sliding_attention'",
        ),
        (
            QWEN,
            {"layer_types": ["full_attention"] * 3},
            "layer_types: wanted one for each of 4 layers, got 3",
        ),
        (
            QWEN,
            {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 4},
            "layer_types: wanted 'full_attention' or 'sliding_attention', got 'chunked_attention'",
        ),
        (
            MISTRAL,
            {"layer_types": ["full_attention"]},
            "layer_types: wanted 'sliding_attention' only, got 'full_attention'",
        ),
        (MISTRAL, {"sliding_window": 0}, "sliding_window: wanted a positive integer, got 0"),
        (
            MIXTRAL,
            {"num_local_experts": 0},
            "num_local_experts: wanted a positive integer, got 0",
        ),
        (MIXTRAL, {"num_local_experts": 1025}, "num_local_experts: wanted at most 1024, got 1025"),
        (MIXTRAL, {"num_experts_per_tok": 9}, "num_experts_per_tok: wanted at most 8, got 9"),
        (
            MIXTRAL,
            {"quantization_config": {"quant_method": "mxfp4"}},
            "quantization_config: wanted None (give the checkpoint that this mxfp4 one was made "
            "of: --dtype int8 or int4 rounds it), got {'quant_method': 'mxfp4'}",
        ),
        (
            GPT_OSS,
            {"quantization_config": {"quant_method": "awq"}},
            "quantization_config: wanted None (give the checkpoint that this awq one was made of: "
            "--dtype int8 or int4 rounds it), got {'quant_method': 'awq'}",
        ),
        (GPT_OSS, {"swiglu_limit": 6.0}, "swiglu_limit: wanted 7.0, got 6.0"),
        (GPT_OSS, {"swiglu_alpha": 1.7}, "swiglu_alpha: wanted 1.702, got 1.7"),
        (
            GEMMA,
            {"query_pre_attn_scalar": -1},
            "query_pre_attn_scalar: wanted a positive number, got -1",
        ),
        (GEMMA, {"final_logit_softcapping": 0}, "logit_cap: wanted a positive number, got 0"),
        (
            GEMMA,
            {"hidden_activation": "silu"},
            "hidden_activation: wanted 'gelu_pytorch_tanh', got 'silu'",
        ),
    ],
)
def test_what_other_families_may_not_say(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        load_config(write_config(tmp_path, base, **changes))
    assert str(caught.value) == f"{tmp_path / 'config.json'}: {message}"


def test_experts_are_read_and_survive_an_artifact(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, MIXTRAL, num_experts_per_tok=3))
    assert config.experts == Experts(count=8, chosen=3)  # the former is transformers' default
    assert config.to_dict()["experts"] == {"count": 8, "chosen": 3}
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_gpt_oss_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    keys = ("rope_theta", "rope_scaling", "num_experts_per_tok", "attention_bias", "rms_norm_eps")
    model = resolve_model(str(write_config(tmp_path, GPT_OSS, **dict.fromkeys(keys, ...))))
    config = model.config
    assert config.experts == Experts(count=128, chosen=4)
    assert (config.attention_bias, config.rope_theta) == (True, 150000.0)
    assert config.rope_scaling == YarnRopeScaling(
        factor=32.0, attention_factor=0.1 * math.log(32) + 1, beta_fast=32.0, beta_slow=1.0,
        truncate=False, original_max_position_embeddings=4096,
    )  # fmt: skip
    assert "rope_parameters {'rope_type': 'yarn', 'factor': 32.0" in model.notices[0]
    mxfp4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    assert load_config(write_config(tmp_path, GPT_OSS, quantization_config=mxfp4)) == (
        load_config(write_config(tmp_path, GPT_OSS))
    )


def test_experts_belong_to_a_mixture(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, MIXTRAL))
    with pytest.raises(ModelError, match=r": experts: wanted how many there are, got None$"):
        replace(config, experts=None)
    with pytest.raises(ModelError, match=r": experts: wanted none, got Experts\("):
        replace(config, architecture=LLAMA)


def test_gemmas_null_caps_are_none(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, GEMMA))
    assert (config.attention_cap, config.logit_cap) == (50.0, 30.0)
    assert config.attention_scale is None  # 256 is the head_dim
    caps = dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"))
    config = load_config(write_config(tmp_path, GEMMA, query_pre_attn_scalar=144, **caps))
    assert (config.attention_cap, config.logit_cap, config.attention_scale) == (None, None, 1 / 12)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GOLDENS.glob("*/config.json")))
def test_model_type_alone_is_enough(tmp_path: Path, name: str) -> None:
    keys = json.loads((GOLDENS / name / "config.json").read_text())
    del keys["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(keys))
    config, wanted = load_config(tmp_path), load_config(GOLDENS / name)
    assert replace(config, name=name, architecture=wanted.architecture) == wanted
    assert config.architecture == wanted.architecture.replace("ForMaskedLM", "Model")


def test_yarn_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0}
    scaling = load_config(write_config(tmp_path, rope_scaling=rope)).rope_scaling
    assert scaling == YarnRopeScaling(
        factor=4.0, attention_factor=0.1 * math.log(4) + 1, beta_fast=32.0, beta_slow=1.0,
        truncate=True, original_max_position_embeddings=131072,
    )  # fmt: skip
    rope |= {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 8.0, "truncate": False}
    scaling = load_config(write_config(tmp_path, rope_scaling=rope)).rope_scaling
    assert isinstance(scaling, YarnRopeScaling)
    assert (scaling.attention_factor, scaling.beta_fast, scaling.truncate) == (1.0, 8.0, False)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_kinds_of_rope_survive_an_artifact(tmp_path: Path, kind: str) -> None:
    rope = {"rope_type": kind, "factor": 2.0}
    config = load_config(write_config(tmp_path, rope_scaling=rope))
    assert config.to_dict()["rope_scaling"]["rope_type"] == kind
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_old_and_new_rope_keys_must_agree(tmp_path: Path) -> None:
    new = {**LLAMA3, "rope_theta": 500000.0}
    assert refusal(tmp_path, rope_parameters=new).startswith(
        "rope_scaling: wanted none beside other rope_parameters, got {'factor': 8.0"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"vocab_size": ', "wanted valid JSON, got Expecting value: line 1 column 16 (char 15)"),
        (b"[1, 2]", "wanted a JSON object, got list"),
        (b"\xff\xfe", "wanted valid JSON, got 'utf-8' codec can't decode byte 0xff in position 0"),
    ],
)
def test_files_that_are_no_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {message}")


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_config(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'config.json'}: wanted a file, got nothing"


def test_a_preset_alone_is_synthetic() -> None:
    model = resolve_model("tiny", seed=7)
    assert (model.config, model.folder) == (PRESETS["tiny"], None)
    assert (model.weights_ref.kind, model.weights_ref.seed) == (WeightsKind.SYNTHETIC, 7)


def test_a_folder_uses_its_own_weights() -> None:
    model = resolve_model(str(GOLDENS / "gqa"))
    assert (model.config.name, model.folder) == ("gqa", GOLDENS / "gqa")
    assert model.weights_ref.folder == GOLDENS / "gqa"


def test_a_preset_with_weights_takes_their_token_ids(tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=[128001, 128008, 128009])
    model = resolve_model("llama-8b", weights=tmp_path)
    assert (model.config.name, model.folder) == ("llama-8b", tmp_path)
    assert model.config.eos_token_ids == (128001, 128008, 128009)
    assert model.weights_ref.folder == tmp_path


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path, hidden_size=8192, num_attention_heads=64)
    with pytest.raises(ModelError) as caught:
        resolve_model("llama-8b", weights=tmp_path)
    path = tmp_path / "config.json"
    assert str(caught.value) == f"{path}: hidden_size: wanted 4096 as in llama-8b, got 8192"


def test_a_folder_with_other_weights(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / "gqa", tmp_path / "tuned")
    model = resolve_model(str(GOLDENS / "gqa"), weights=tmp_path / "tuned")
    assert model.folder == GOLDENS / "gqa"
    assert model.weights_ref.folder == tmp_path / "tuned"
    with pytest.raises(ModelError, match="hidden_size: wanted 32 as in gqa, got 48"):
        resolve_model(str(GOLDENS / "gqa"), weights=GOLDENS / "sharded")


def test_an_unknown_model_lists_the_presets() -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model("lama-8b")
    assert str(caught.value) == (
        f"model 'lama-8b': wanted a preset ({', '.join(PRESETS)}) or a folder with config.json, "
        "got neither"
    )


def test_names_that_no_folder_can_have() -> None:
    for name in ("n" * 5000, "/" + "n" * 5000, "n" * 5000 + "/x"):
        with pytest.raises(ModelError) as caught:
            resolve_model(name)
        assert "wanted a name that can be looked up, got File name too long" in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(GOLDENS / "gqa", folder)
    model = resolve_model(str(folder))
    assert model.config.name == "caf\\xe9"
    assert model.weights_ref.describe() == f"weights of caf\\xe9 from {tmp_path}/caf\\xe9"
    assert model.weights_ref.open().vector("model.norm.weight").shape == (32,)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError) as caught:
        resolve_model(str(folder))
    assert str(caught.value) == f"{tmp_path}/caf\\udce9/config.json: wanted a file, got nothing"


def test_hub_ids_come_from_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"a Hub id in the cache .*hub, got none .*hf download"):
        resolve_model("some/gqa")
    repo = tmp_path / "hub" / "models--some--gqa"
    shutil.copytree(GOLDENS / "gqa", repo / "snapshots" / "0123abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abc")
    model = resolve_model("some/gqa")
    assert model.config.name == "some/gqa"
    assert model.folder == repo / "snapshots" / "0123abc"
