"""Architectures: the features that all models of one architecture share, apart from sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from chip.ops.opcodes import Activation, Function


class Windows(Enum):
    """The layers whose rows see only the last `sliding_window` tokens.

    Where a layer may have one or not, `layer_types` says which do; this is its default.
    """

    NONE = "no layer"
    ALL = "every layer"
    ALTERNATE = "the first, the third, and so on"
    LATER = "those from `max_window_layers` on, if `use_sliding_window` is true"

    @property
    def vary(self) -> bool:
        """Whether `layer_types` may say which layers have one."""
        return self in (Windows.ALTERNATE, Windows.LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Features of a mixture of experts, which stands in the MLP's place.

    `router`, `gate`, `up` and `down` name tensors within a layer; `{}` is an expert's number.
    Checkpoints may have experts otherwise: compiler/model/stored.py.
    """

    router: str
    gate: str
    up: str
    down: str
    after: bool = False  # the softmax is over the chosen experts alone
    bias: bool = False  # router and experts have biases
    turns: bool = False  # files have experts joined, the columns of gate and up in turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Features of a layer. compiler/model/layer.py makes operations of them.

    `options`: keys of config.json that turn features on and that the architecture has.
    `defaults`: transformers' values of keys that may be absent.
    """

    name: str  # as `architectures` of config.json has it
    model_type: str
    activation: Activation  # of the MLP's gate
    act_key: str = "hidden_act"  # that says it in config.json
    options: frozenset[str] = frozenset()
    defaults: Mapping[str, Any]
    windows: Windows = Windows.NONE
    qkv_bias: bool = False  # queries, keys and values have biases, whatever config.json says
    head_norms: bool = False  # of each query and key, before RoPE
    post_norms: bool = False  # of what attention and the MLP give, before it is added
    norm_offset: float = 0.0  # that is added to every norm's weights
    scaled_embedding: bool = False  # by the root of the hidden size
    rope: Mapping[str, Any] | None = None  # where config.json says nothing of it
    sinks: bool = False  # each head has a score of no token, which takes part in the softmax
    mixture: Mixture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderArchitecture:
    """A model whose rows all see each other. compiler/model/encoder.py has its layers."""

    name: str  # as `architectures` of config.json has it
    model_type: str


# `hidden_act` of config.json: names of one function.
HIDDEN_ACT: dict[Activation, tuple[str, ...]] = {
    Activation.SILU: ("silu", "swish"),
    Activation.CLAMPED_SILU: ("silu", "swish"),
    Activation.GEGLU: ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"),
}
ENCODER_ACT: dict[Function, tuple[str, ...]] = {
    Function.GELU: ("gelu", "gelu_python"),
    Function.GELU_TANH: ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
}
LLAMA, MISTRAL, MIXTRAL = "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"
QWEN2, QWEN3, GEMMA2 = "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM"
GPT_OSS, BERT = "GptOssForCausalLM", "BertModel"
_LLAMA: dict[str, Any] = {
    "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
_MISTRAL = {
    **_LLAMA, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096,
}  # fmt: skip
_MIXTRAL = {
    **_MISTRAL, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
    "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
_QWEN = {
    **_LLAMA, "vocab_size": 151936, "max_position_embeddings": 32768, "num_key_value_heads": 32,
    "sliding_window": 4096,
}  # fmt: skip
_GEMMA2 = {
    **_LLAMA, "vocab_size": 256000, "max_position_embeddings": 8192, "num_key_value_heads": 4,
    "head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096,
    "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
_GPT_OSS = {
    **_LLAMA, "vocab_size": 201088, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128,
    "attention_bias": True, "num_local_experts": 128, "num_experts_per_tok": 4,
}  # fmt: skip
_DECODERS = (
    Architecture(
        name=LLAMA, model_type="llama", activation=Activation.SILU, defaults=_LLAMA,
        options=frozenset({"attention_bias", "mlp_bias"}),
    ),
    Architecture(
        name=MISTRAL, model_type="mistral", activation=Activation.SILU, defaults=_MISTRAL,
        windows=Windows.ALL,
    ),
    Architecture(
        name=MIXTRAL, model_type="mixtral", activation=Activation.SILU, defaults=_MIXTRAL,
        options=frozenset({"num_local_experts"}), windows=Windows.ALL,
        mixture=Mixture(
            router="block_sparse_moe.gate", gate="block_sparse_moe.experts.{}.w1",
            up="block_sparse_moe.experts.{}.w3", down="block_sparse_moe.experts.{}.w2",
        ),
    ),
    Architecture(
        name=QWEN2, model_type="qwen2", activation=Activation.SILU, defaults=_QWEN,
        windows=Windows.LATER, qkv_bias=True,
    ),
    Architecture(
        name=QWEN3, model_type="qwen3", activation=Activation.SILU,
        defaults={**_QWEN, "head_dim": 128}, options=frozenset({"attention_bias"}),
        windows=Windows.LATER, head_norms=True,
    ),
    Architecture(
        name=GEMMA2, model_type="gemma2", activation=Activation.GEGLU,
        act_key="hidden_activation", defaults=_GEMMA2, windows=Windows.ALTERNATE,
        options=frozenset({
            "attention_bias", "query_pre_attn_scalar", "attn_logit_softcapping",
            "final_logit_softcapping",
        }),
        post_norms=True, norm_offset=1.0, scaled_embedding=True,
    ),
    Architecture(
        name=GPT_OSS, model_type="gpt_oss", activation=Activation.CLAMPED_SILU, defaults=_GPT_OSS,
        options=frozenset({"attention_bias", "num_local_experts"}), windows=Windows.ALTERNATE,
        sinks=True,
        rope={
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": False, "original_max_position_embeddings": 4096,
        },
        mixture=Mixture(
            router="mlp.router", gate="mlp.experts.{}.gate_proj", up="mlp.experts.{}.up_proj",
            down="mlp.experts.{}.down_proj", after=True, bias=True, turns=True,
        ),
    ),
)  # fmt: skip
ARCHITECTURES = {one.name: one for one in _DECODERS}
# The encoder is what is run, whatever head a checkpoint has on it.
ENCODERS = {
    name: EncoderArchitecture(name=name, model_type="bert") for name in (BERT, "BertForMaskedLM")
}
