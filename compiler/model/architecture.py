"""Architectures: the features that all models of one architecture share, apart from sizes."""

from __future__ import annotations

from dataclasses import dataclass

from chip.ops.opcodes import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Features of a layer. compiler/model/layer.py makes operations of them."""

    name: str  # as `architectures` of config.json has it
    model_type: str
    activation: Activation  # of the MLP's gate


# `hidden_act` of config.json: names of one function.
HIDDEN_ACT: dict[Activation, tuple[str, ...]] = {Activation.SILU: ("silu", "swish")}
LLAMA = "LlamaForCausalLM"
ARCHITECTURES = {
    LLAMA: Architecture(name=LLAMA, model_type="llama", activation=Activation.SILU),
}
