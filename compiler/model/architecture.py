"""Architectures: the features that all models of one architecture share, apart from sizes."""

from __future__ import annotations

from dataclasses import dataclass

from chip.ops.opcodes import Activation, Function


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Features of a layer. compiler/model/layer.py makes operations of them."""

    name: str  # as `architectures` of config.json has it
    model_type: str
    activation: Activation  # of the MLP's gate


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderArchitecture:
    """A model whose rows all see each other. compiler/model/encoder.py has its layers."""

    name: str  # as `architectures` of config.json has it
    model_type: str


# `hidden_act` of config.json: names of one function.
HIDDEN_ACT: dict[Activation, tuple[str, ...]] = {Activation.SILU: ("silu", "swish")}
ENCODER_ACT: dict[Function, tuple[str, ...]] = {
    Function.GELU: ("gelu", "gelu_python"),
    Function.GELU_TANH: ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
}
LLAMA = "LlamaForCausalLM"
BERT = "BertModel"
ARCHITECTURES = {
    LLAMA: Architecture(name=LLAMA, model_type="llama", activation=Activation.SILU),
}
# The encoder is what is run, whatever head a checkpoint has on it.
ENCODERS = {
    name: EncoderArchitecture(name=name, model_type="bert") for name in (BERT, "BertForMaskedLM")
}
