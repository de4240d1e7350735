"""compiler.model.config: what a configuration may be, and its way into an artifact and back."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest

from compiler.errors import ModelError
from compiler.model.architecture import ARCHITECTURES, ENCODERS
from compiler.model.config import ModelConfig
from compiler.model.presets import PRESETS


@pytest.mark.parametrize("config", PRESETS.values(), ids=list(PRESETS))
def test_a_config_survives_its_dict_and_pickle(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_from_dict_wants_exactly_its_fields() -> None:
    data = PRESETS["llama-8b"].to_dict()
    with pytest.raises(ModelError) as caught:
        ModelConfig.from_dict({**data, "colour": "red"})
    assert str(caught.value) == (
        "model config: wanted exactly its own fields, got missing [] and unknown ['colour']"
    )
    del data["rope_scaling"]["factor"]
    with pytest.raises(ModelError) as caught:
        ModelConfig.from_dict(data)
    assert str(caught.value) == (
        "model config: rope_scaling: wanted exactly its own fields, "
        "got missing ['factor'] and unknown []"
    )


def test_a_config_of_another_architecture_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        replace(PRESETS["tiny"], architecture="X")
    wanted = " or ".join([*ARCHITECTURES, *ENCODERS])
    assert str(caught.value) == f"tiny: architecture: wanted {wanted}, got 'X'"


def test_errors_survive_pickle() -> None:
    error = pickle.loads(pickle.dumps(ModelError("a", "b", "c")))
    assert (type(error), error.what, error.wanted, error.got) == (ModelError, "a", "b", "c")
    assert str(error) == "a: wanted b, got c"
