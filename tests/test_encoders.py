"""Encoders through compiler and machine: BERT's hidden states, the same bits on every layout."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int_bert import IntBert

from chip.ops.attention import Attend
from chip.ops.opcodes import Opcode
from compiler.errors import CapacityError, CompilerError, LayoutError, ModelError, ScheduleError
from compiler.model.config import Encoder, ModelConfig
from compiler.model.frontend import Model, load_config, resolve_model
from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef, required_tensors
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.auto import choose_layout
from compiler.place.layout import parse_layout
from compiler.verify.verifier import verify
from rack.errors import FaultError, RackError, RequestError
from rack.machines.profile import load_hardware
from rack.run.encoding import Encoded, encode
from rack.run.local import LocalRack
from rack.run.steps import StepResult
from rack.run.timing_rack import TimingRack

GOLDENS = Path(__file__).parent / "goldens"
LAYOUTS = ("1x1", "1x2", "2x2", "1x3", "2x1")
LENGTH = 30  # of the steps: more than a golden has


@cache
def model(name: str) -> Model:
    return resolve_model(str(GOLDENS / name))


@cache
def golden(name: str) -> dict[str, Any]:
    with np.load(GOLDENS / name / "golden.npz") as found:
        return {key: found[key] for key in found}


def compiled(name: str, layout: str, dtype: str, hardware: str = "groqrack") -> CompiledModel:
    options = Options(dtype=dtype, max_model_len=LENGTH)
    machine = load_hardware(hardware)
    return compile_model(model(name).config, machine, parse_layout(layout), options)


def run(
    compiled: CompiledModel, weights: WeightsRef, tokens: list[int], types: list[int],
    executor: str = "fast",
) -> Encoded:  # fmt: skip
    rack = LocalRack(compiled, weights, executor=executor)
    try:
        return encode(rack, tokens, types)
    finally:
        rack.close()


@cache
def run_golden(name: str, layout: str, dtype: str, tokens: int = 24) -> Encoded:
    given = golden(name)
    ids, types = (given[key][:tokens].tolist() for key in ("token_ids", "types"))
    return run(compiled(name, layout, dtype), model(name).weights_ref, ids, types)


def weights(name: str) -> dict[str, Any]:
    source, shapes = model(name).weights_ref.open(), required_tensors(model(name).config)
    return {
        key: source.vector(key) if len(shape) == 1 else source.f32_rows(key, 0, shape[0])
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("name", ["bert", "bert_mlm"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fp16_is_close_to_transformers(name: str, layout: str) -> None:
    wanted, got = golden(name)["hidden"], run_golden(name, layout, "fp16")
    assert got.hidden is not None
    assert wanted.std() > 0.9  # normed, not flat
    assert np.abs(got.hidden - wanted).max() < 0.01
    assert np.abs(got.hidden - wanted).mean() < 0.001


@pytest.mark.parametrize("name", ["bert", "bert_mlm"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_int8_is_near_transformers(name: str, layout: str) -> None:
    wanted, got = golden(name)["hidden"], run_golden(name, layout, "int8")
    assert got.hidden is not None
    assert np.abs(got.hidden - wanted).mean() < 0.05


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_every_layout_gives_the_same_bits(dtype: str) -> None:
    one = run_golden("bert", "1x1", dtype)
    for layout in LAYOUTS[1:]:
        other = run_golden("bert", layout, dtype)
        assert one.hidden is not None
        assert other.hidden is not None
        assert np.array_equal(one.hidden.view(np.uint32), other.hidden.view(np.uint32)), layout
        assert other.data_hash == one.data_hash
    assert run_golden("bert", "1x1", dtype, 23).data_hash != one.data_hash


def test_bits_are_as_they_were() -> None:
    known = {
        ("bert", "int8"): "5cfca171352d1c5a", ("bert", "fp16"): "056b9929bb3528b2",
        ("bert_mlm", "int8"): "cf8571be45d665b2", ("bert_mlm", "fp16"): "4721841c518dfeb2",
    }  # fmt: skip
    for (name, dtype), wanted in known.items():
        assert str(run_golden(name, "1x1", dtype).data_hash)[:16] == wanted, (name, dtype)


@pytest.mark.parametrize("name", ["bert", "bert_mlm"])
def test_int8_equals_the_plain_integer_model(name: str) -> None:
    config = json.loads((GOLDENS / name / "config.json").read_text())
    given, got = golden(name), run_golden(name, "1x2", "int8")
    wanted = IntBert(config, weights(name)).hidden(given["token_ids"], given["types"])
    assert np.array_equal(got.hidden, wanted)


def test_tokens_beyond_the_sequence_are_not_seen() -> None:
    """A sequence gives the same bits in a step of its own size and in a larger one."""
    given = golden("bert")
    ids, types = given["token_ids"][:7].tolist(), given["types"][:7].tolist()
    small = run_golden("bert", "1x1", "int8", 7)
    whole = replace(compiled("bert", "1x1", "int8"), buckets=(LENGTH,))
    rack = LocalRack(whole, model("bert").weights_ref)
    encode(rack, given["token_ids"].tolist())  # leaves keys and values behind
    large = encode(rack, ids, types)
    rack.close()
    assert (small.step, large.step) == ("encode7/7", "encode30/30")
    assert small.cycles < large.cycles
    assert np.array_equal(small.hidden, large.hidden)


@pytest.mark.parametrize(("length", "work_slices"), [(5, 2), (8, 3)])
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_the_reference_machine_agrees(dtype: str, length: int, work_slices: int) -> None:
    """The chip's memory is small: there is no room for feed slices where rows are more."""
    config = replace(model("bert").config, num_layers=1)
    machine, options = load_hardware("groqrack"), Options(dtype=dtype, max_model_len=length)
    machine = replace(machine, chip=replace(machine.chip, sram_bytes=88 * 2 * 320 * 16))
    made = compile_model(config, machine, parse_layout("1x2"), options)
    assert made.chip.work_slices == work_slices
    assert (made.chip.feed_slices == 0) == (work_slices == 3)
    fast, reference = (
        run(made, WeightsRef.synthetic(config, 3), [3, 1, 4, 1], [0, 0, 1, 1], executor)
        for executor in ("fast", "reference")
    )
    assert fast.data_hash == reference.data_hash
    assert fast.cycles == reference.cycles == made.encode_step(4).cycles


def test_clocks_that_stray_change_no_bit() -> None:
    given = golden("bert")
    made = compiled("bert", "2x2", "int8", "groqrack-drift")
    ids, types = given["token_ids"].tolist(), given["types"].tolist()
    got = run(made, model("bert").weights_ref, ids, types)
    assert got.data_hash == run_golden("bert", "2x2", "int8").data_hash


def test_what_a_step_is() -> None:
    made = compiled("bert", "1x1", "int8")
    assert list(made.steps) == ["encode7/7", "encode30/30"]
    assert made.encode_step(7).name == made.step_for(5).name == "encode7/7"
    step = made.encode_step(8)
    attends = [o.op for o in step.programs[0].operations if isinstance(o.op, Attend)]
    assert {op.horizon for op in attends} == {0}
    results = [t for t in step.transfers if t.name == "host.result"]
    assert [t.vectors for t in results] == [30]  # 48 fp32 columns of 30 rows
    assert TimingRack(made).run_step(step.name, [], []).cycles == step.cycles
    with pytest.raises(CompilerError) as caught:
        made.encode_step(31)
    assert str(caught.value) == "tokens: wanted at most 30, got 31"


def test_chips_share_the_way_back() -> None:
    step = compiled("bert", "1x3", "fp16").encode_step(30)
    assert [t.src for t in step.transfers if t.name == "host.result"] == [0]  # one vector a row
    wide = replace(PRESETS["tiny-bert"], hidden_size=400, num_heads=4, num_kv_heads=4, head_dim=100)
    options = Options(max_model_len=LENGTH)
    made = compile_model(wide, load_hardware("groqrack"), parse_layout("1x3"), options)
    shares = [(t.src, t.vectors) for t in made.encode_step(30).transfers if t.name == "host.result"]
    assert shares == [(0, 50), (1, 50), (2, 50)]


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("1x1", {"max_model_len": 1}, "max_model_len: wanted 2 or more, as bert is an encoder, "
                                      "got 1"),
        ("1x1", {"prefill_chunk": 4}, "prefill_chunk: wanted none, as bert is an encoder, got 4"),
        ("1x1", {"top_k": 4}, "top_k: wanted none, as bert is an encoder, got 4"),
    ],
)  # fmt: skip
def test_what_an_encoder_cannot_be_compiled_with(
    layout: str, options: dict[str, int], message: str
) -> None:
    wanted = Options(**{"max_model_len": LENGTH, **options})
    with pytest.raises(CompilerError) as caught:
        compile_model(model("bert").config, load_hardware("lesson"), parse_layout(layout), wanted)
    assert str(caught.value) == message


def test_an_encoder_has_no_head_group() -> None:
    with pytest.raises(LayoutError) as caught:
        compiled("bert", "1x2+1", "int8")
    assert str(caught.value) == (
        "layout 1x2+1: wanted no head group, as bert is an encoder, got 1 chips"
    )


def test_what_does_not_fit_is_refused_with_its_bytes() -> None:
    with pytest.raises(CapacityError) as caught:
        compile_model(PRESETS["bert-large"], load_hardware("groqrack"), parse_layout("1x1"))
    assert "bytes missing" in str(caught.value)


def test_an_automatic_layout() -> None:
    layout = choose_layout(model("bert").config, load_hardware("groqrack"), Options())
    assert (layout.head, layout.stages) == (0, 1)


@pytest.mark.parametrize(
    ("tokens", "types", "message"),
    [
        ([], None, "tokens: wanted 1 to 30, the context, got 0 tokens"),
        ([1] * 31, None, "tokens: wanted 1 to 30, the context, got 31 tokens"),
        ([1, 2], [0], "types: wanted one for each of 2 tokens, got 1"),
        ([1, 61], None, "tokens: wanted ids below 61, got 61"),
        ([1, 2], [0, 2], "types: wanted ids below 2, got 2"),
    ],
)
def test_sequences_that_cannot_be_encoded(
    tokens: list[int], types: list[int] | None, message: str
) -> None:
    rack = TimingRack(compiled("bert", "1x1", "int8"))
    with pytest.raises(RequestError) as caught:
        encode(rack, tokens, types)
    assert str(caught.value) == message


# -- what the verifier knows


def refused(opcode: Opcode, place: str, **changed: Any) -> str:
    """Change an operation, or its `name`; return what the verifier says."""
    made = compiled("bert", "2x1", "int8")
    step = made.encode_step(30)
    operations = list(step.programs[0].operations)
    at = next(n for n, o in enumerate(operations) if (o.opcode, o.name) == (opcode, place))
    old, name = operations[at], changed.pop("name", place)
    known = made.memories[0].addresses()
    moved = {operand: known[other] for operand, other in changed.items()}
    operations[at] = replace(old, name=name, op=replace(old.op, **moved))  # type: ignore[type-var]
    program = replace(step.programs[0], operations=tuple(operations))
    bad = replace(step, programs=(program, *step.programs[1:]))
    with pytest.raises(ScheduleError) as caught:
        verify([(bad, 0)], made.costs, made.network.links, made.memories)
    return str(caught.value)


@pytest.mark.parametrize(
    ("opcode", "place", "operand", "other"),
    [
        (Opcode.MATMUL, "layers.0.attention.qkv", "b", "layers.0.attention.output.bias"),
        (Opcode.LAYER_NORM, "layers.0.attention.norm", "beta", "layers.0.input.norm.bias"),
        (Opcode.LAYER_NORM, "layers.0.attention.norm", "gamma", "layers.0.input.norm"),
    ],
)
def test_constants_of_another_operation(
    opcode: Opcode, place: str, operand: str, other: str
) -> None:
    assert f"{place}: operand {operand} at (" in refused(opcode, place, **{operand: other})


@pytest.mark.parametrize(
    ("opcode", "place", "operand", "writer"),
    [
        (Opcode.GELU, "intermediate.gelu", "x", "layers.0.intermediate.dense (matmul)"),
        (Opcode.ADD, "attention.add", "x", "layers.0.input.norm (layer_norm)"),
        (Opcode.GATHER, "output.dense", "src", "layers.0.intermediate.gelu (gelu)"),
    ],
)
def test_results_of_another_layer(opcode: Opcode, place: str, operand: str, writer: str) -> None:
    said = refused(opcode, f"layers.0.{place}", name=f"layers.1.{place}")
    assert f"layers.1.{place} ({opcode}) reads {operand} at (" in said
    assert f"was last written by {writer}" in said


def test_an_encoder_without_a_horizon() -> None:
    """Its rows would see only what is before them."""
    made = compiled("bert", "2x1", "int8")
    step = made.encode_step(30)
    operations = [
        replace(o, op=replace(o.op, horizon=None)) if isinstance(o.op, Attend) else o
        for o in step.programs[0].operations
    ]
    program = replace(step.programs[0], operations=tuple(operations))
    bad = replace(step, programs=(program, *step.programs[1:]))
    with pytest.raises(ScheduleError) as caught:
        verify([(bad, 0)], made.costs, made.network.links, made.memories)
    assert str(caught.value) == (
        "chip 0, layers.0.attention.attend (attend): wanted horizon 0 in encode30/30, got None"
    )


def test_an_operation_that_no_encoder_has() -> None:
    said = refused(Opcode.GELU, "layers.0.intermediate.gelu", name="layers.0.mlp.gelu")
    assert said == "chip 0: layers.0.mlp.gelu (gelu) is of no known model"


# -- configurations


def config_of(tmp_path: Path, **changes: Any) -> ModelConfig:
    config = json.loads((GOLDENS / "bert" / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    return load_config(tmp_path)


def test_a_configuration_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert config.encoder == Encoder(type_vocab_size=2, activation="gelu")  # type: ignore[arg-type]
    assert (config.rope_theta, config.rms_norm_eps, config.num_kv_heads) == (None, 1e-12, 4)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config_of(tmp_path, hidden_act="gelu_fast").encoder != config.encoder
    assert "encoder" not in PRESETS["tiny"].to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act: wanted 'gelu' or 'gelu_python' or 'gelu_new' or "
         "'gelu_pytorch_tanh' or 'gelu_fast' or 'gelu_accurate', got 'relu'"),
        ({"position_embedding_type": "relative_key"},
         "position_embedding_type: wanted 'absolute', got 'relative_key'"),
        ({"is_decoder": True}, "is_decoder: wanted False, got True"),
        ({"add_cross_attention": True}, "add_cross_attention: wanted False, got True"),
        ({"quantization_config": {}},
         "quantization_config: wanted None (give the checkpoint that this one was made of: --dtype "
         "int8 or int4 rounds it), got {}"),
        ({"type_vocab_size": 0}, "type_vocab_size: wanted a positive integer, got 0"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps: wanted a positive number, got -1.0"),
    ],
)  # fmt: skip
def test_what_a_configuration_may_not_say(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        config_of(tmp_path, **changes)
    assert str(caught.value).removeprefix(f"{tmp_path / 'config.json'}: ") == message


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny-bert", {"encoder": None}, "tiny-bert: encoder: wanted an encoder's values, got "
                                         "None"),
        ("tiny-bert", {"rope_theta": 1e4}, "tiny-bert: RoPE: wanted none for an encoder, got "
                                          "10000.0"),
        ("tiny", {"rope_theta": None}, "tiny: rope_theta: wanted a positive number, got None"),
    ],
)  # fmt: skip
def test_values_that_do_not_belong_together(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        replace(PRESETS[name], **changes)
    assert str(caught.value) == message


def test_an_encoder_without_types_or_with_an_unknown_function() -> None:
    for values, message in (
        ((0, "gelu"), "encoder: type_vocab_size: wanted a positive integer, got 0"),
        ((2, "elu"), "encoder: activation: wanted gelu or gelu_tanh, got 'elu'"),
    ):
        with pytest.raises(ModelError) as caught:
            Encoder(type_vocab_size=values[0], activation=values[1])  # type: ignore[arg-type]
        assert str(caught.value) == message


def test_what_is_behind_the_encoder_is_named_and_not_read() -> None:
    (notice,) = model("bert").weights_ref.open().notices
    assert notice.endswith(
        "pooler.dense.bias and 1 more, no part of the encoder, are not read: hidden states are "
        "what it gives"
    )
    (notice,) = model("bert_mlm").weights_ref.open().notices
    assert "cls.predictions" in notice


def test_presets_have_the_published_number_of_parameters() -> None:
    for name, millions in (("bert-base", 108.9), ("bert-large", 334.1)):
        shapes = required_tensors(PRESETS[name]).values()
        assert round(sum(int(np.prod(shape)) for shape in shapes) / 1e6, 1) == millions


def test_a_sequence_runs_once_more_after_a_fault() -> None:
    given = golden("bert")
    ids, types = (given[key].tolist() for key in ("token_ids", "types"))
    rack = LocalRack(compiled("bert", "1x2", "int8"), model("bert").weights_ref)
    wanted, finish, faults = encode(rack, ids, types), rack.finish, 2

    def losing() -> list[StepResult]:
        nonlocal faults
        if faults > 0:
            faults -= 1
            raise FaultError(chip=1, step="step x", what="lost", waiting_for="nothing")
        return finish()

    rack.finish = losing  # type: ignore[method-assign]
    got = encode(rack, ids, types)
    assert (got.data_hash, got.cycles) == (wanted.data_hash, wanted.cycles)
    assert [one.replayed_cycles for one in got.recoveries] == [wanted.cycles] * 2
    assert wanted.recoveries == ()
    faults = 1000
    with pytest.raises(RackError, match="101 runs in a row did not come to their end: chip 1"):
        encode(rack, ids, types)
    rack.close()
