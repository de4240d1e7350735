"""Layers with a window keep it in a ring: what they give, hold and cost beyond what they keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from int_model import IntLlama
from numpy.typing import NDArray
from safetensors.numpy import load_file
from schedules import check, edit, find, machine

from chip.kernels import load as load_kernels
from chip.ops.attention import Attend, Rope
from chip.ops.kv import RING_ROWS, ring_of
from chip.ops.opcodes import Opcode
from chip.run.executor import Binder, StepState
from chip.sram import Sram
from compiler.artifact import read_artifact, write_artifact
from compiler.errors import CompilerError, ScheduleError
from compiler.model.config import ModelConfig
from compiler.model.frontend import resolve_model
from compiler.model.graph import build_graph
from compiler.model.presets import PRESETS
from compiler.model.weights import WeightsRef
from compiler.pipeline import (
    MAX_CHUNK,
    CompiledModel,
    Options,
    compile_model,
    largest_context,
    lay_out,
)
from compiler.place.allocate import chip_classes
from compiler.place.layout import parse_layout
from compiler.place.partition import partition
from rack.run.engine import Engine
from rack.run.local import LocalRack
from rack.text.sampler import SamplingParams
from rack.text.tokenizer import load_tokenizer

GOLDENS = Path(__file__).parent / "goldens"
RINGS = ["mistral_ring", "gemma2_ring", "gpt_oss_ring"]  # windows of 40 to 193: rings of 320 tokens
SHAPES = [  # layout, machine, prefill chunk, buckets
    ("1x1", "lesson", 16, (346,)),
    ("1x2", "lesson", 16, (320,)),
    ("3x1+1", "lesson", 7, (319,)),
    ("1x3+2", "groqrack", 16, (346,)),
    ("1x13", "lesson", 7, (346,)),  # vectors are forwarded
]
INT8_SHAPES = [("1x2", "lesson", 16, (320,)), ("2x3+2", "groqrack", 7, (346,))]


def three(window: int, *, full: int = 0, positions: int = 4000) -> ModelConfig:
    """A Mistral of three small layers, of which the first `full` have no window."""
    return ModelConfig(
        name="three", architecture="MistralForCausalLM", hidden_size=24, intermediate_size=20,
        num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, vocab_size=50,
        max_position_embeddings=positions, rms_norm_eps=1e-5, rope_theta=10000.0,
        rope_scaling=None, tie_word_embeddings=True, bos_token_id=None, eos_token_ids=(),
        windows=(*[None] * full, *[window] * (3 - full)),
    )  # fmt: skip


@lru_cache(maxsize=16)
def made(
    config: ModelConfig, layout: str = "1x1", *, context: int | None = None, dtype: str = "int8",
    hardware: str = "lesson", chunk: int | None = None, buckets: tuple[int, ...] | None = None,
    kinds: str = "all",
) -> CompiledModel:  # fmt: skip
    options = Options(dtype=dtype, max_model_len=context, prefill_chunk=chunk, buckets=buckets)
    return compile_model(config, machine(hardware), parse_layout(layout), options, kinds=kinds)


def run(
    compiled: CompiledModel, weights: WeightsRef, tokens: Sequence[int], first: int
) -> NDArray[np.float32]:
    """Logits of the positions from `first` on: prefill in whole chunks, then decode steps."""
    rack, rows = LocalRack(compiled, weights), []
    rack.reset()
    for at in range(0, first, compiled.prefill_chunk):
        end = min(at + compiled.prefill_chunk, first)
        step = compiled.step(end - at, end, decode=False)
        rack.run_step(step.name, range(at, end), tokens[at:end])
    for place in range(first, len(tokens)):
        step = compiled.step(1, place + 1, decode=True)
        logits = rack.run_step(step.name, [place], [tokens[place]]).logits
        assert logits is not None
        rows.append(logits)
    rack.close()
    return np.stack(rows)


def golden(name: str) -> tuple[list[int], NDArray[np.float32], list[int]]:
    """Prompt and what follows, logits of the prompt's last tokens, what follows."""
    found = np.load(GOLDENS / name / "golden.npz")
    greedy = found["greedy"].tolist()
    return [*found["token_ids"].tolist(), *greedy], found["logits"], greedy


# -- what they give


@pytest.mark.parametrize("name", RINGS)
@pytest.mark.parametrize(("layout", "hardware", "chunk", "buckets"), SHAPES)
def test_fp16_gives_the_tokens_of_transformers(
    name: str, layout: str, hardware: str, chunk: int, buckets: tuple[int, ...]
) -> None:
    tokens, logits, greedy = golden(name)
    model = resolve_model(str(GOLDENS / name))
    compiled = made(
        model.config, layout, context=346, dtype="fp16", hardware=hardware, chunk=chunk,
        buckets=buckets,
    )  # fmt: skip
    first = len(tokens) - len(greedy) - 1
    got = run(compiled, model.weights_ref, tokens[:-1], first)
    assert got.argmax(axis=1).tolist() == greedy
    assert np.abs(got[0] - logits[-1]).max() < 2.0**-8 * np.abs(logits[-1]).max()


@lru_cache(maxsize=2)
def plain_logits(name: str) -> NDArray[np.float32]:
    tokens, *_ = golden(name)
    config = json.loads((GOLDENS / name / "config.json").read_text())
    return IntLlama(config, load_file(GOLDENS / name / "model.safetensors")).logits(tokens)


@pytest.mark.parametrize("name", RINGS)
@pytest.mark.parametrize(("layout", "hardware", "chunk", "buckets"), INT8_SHAPES)
def test_int8_equals_the_plain_integer_model(
    name: str, layout: str, hardware: str, chunk: int, buckets: tuple[int, ...]
) -> None:
    tokens, *_ = golden(name)
    model = resolve_model(str(GOLDENS / name))
    compiled = made(
        model.config, layout, context=346, hardware=hardware, chunk=chunk, buckets=buckets
    )
    got = run(compiled, model.weights_ref, tokens, 336)
    assert got.tobytes() == plain_logits(name)[336:].tobytes()


def test_rings_of_several_vectors_equal_the_plain_integer_model() -> None:
    """A ring of 960 tokens that is written over twice: sums go by slots, in three vectors."""
    name = "mistral_ring"
    raw = json.loads((GOLDENS / name / "config.json").read_text())
    weights = load_file(GOLDENS / name / "model.safetensors")
    model = resolve_model(str(GOLDENS / name))
    raw |= {"sliding_window": 833, "num_hidden_layers": 1}
    config = replace(model.config, windows=(833,), num_layers=1, max_position_embeddings=2048)
    tokens = np.random.default_rng(1).integers(0, 97, 1930).tolist()
    wanted = IntLlama(raw, weights).logits(tokens)[-4:]
    for layout, chunk in (("1x1", 128), ("1x2+1", 16)):
        compiled = made(config, layout, context=2048, chunk=chunk, buckets=(2048,))
        rope = find(compiled.steps["decode/2048"], 0, Opcode.ROPE, "rope").op
        assert isinstance(rope, Rope)
        assert (rope.ring, rope.context) == (960, 2048)
        got = run(compiled, model.weights_ref, tokens, len(tokens) - 4)
        assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_any_run_equals_one_chip(dtype: str) -> None:
    """Layouts, chunks, buckets and contexts: also one that is no longer than the ring."""
    config, prompt = three(500, full=1), np.random.default_rng(2).integers(0, 50, 690).tolist()
    weights, params = WeightsRef.synthetic(config, 3), SamplingParams(max_tokens=3, ignore_eos=True)

    def outcome(model: CompiledModel, tokens: list[int]) -> tuple[str | None, list[int]]:
        rack = LocalRack(model, weights)
        engine = Engine(rack, load_tokenizer(None, 50, None, ()))
        done = engine.generate(tokens, params).run()
        rack.close()
        return done.data_hash, done.token_ids

    long = made(config, "1x1", context=800, dtype=dtype, chunk=16, buckets=(800,))
    wanted = outcome(long, prompt)
    other = made(config, "2x2+1", context=700, dtype=dtype, chunk=7, buckets=(500,))
    assert outcome(other, prompt) == wanted
    short = made(config, "1x2", context=640, dtype=dtype, chunk=16, buckets=(640,))  # has no ring
    assert outcome(short, prompt[:630]) == outcome(long, prompt[:630])


def test_a_request_never_sees_what_the_one_before_left_in_the_ring() -> None:
    config = three(100)
    rack = LocalRack(made(config, context=700, chunk=60), WeightsRef.synthetic(config, 3))
    engine = Engine(rack, load_tokenizer(None, 50, None, ()))
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    tokens = np.random.default_rng(4).integers(0, 50, 650).tolist()
    prompts = [tokens[:5], tokens, tokens[:340], tokens[:5], tokens[200:], tokens[:340], tokens]
    hashes = [engine.generate(prompt, params).run().data_hash for prompt in prompts]
    rack.close()
    assert hashes[0] == hashes[3]
    assert hashes[1] == hashes[6]
    assert hashes[2] == hashes[5]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(("dtype", "layout"), [("int8", "1x1"), ("fp16", "1x2")])
def test_a_chunk_around_the_end_of_the_ring_on_the_machine(dtype: str, layout: str) -> None:
    """Instruction by instruction, from a cache that the fast executor has filled; then a token."""
    config = replace(three(100), num_layers=1, windows=(100,))
    model = made(config, layout, context=340, dtype=dtype, chunk=8, buckets=(340,))
    weights, tokens = WeightsRef.synthetic(config, 3), [i * i % 50 for i in range(326)]
    racks = [LocalRack(model, weights, executor=name) for name in ("fast", "reference")]
    for rack in racks:
        rack.reset()
    for at in range(0, 316, 8):
        end = min(at + 8, 316)
        racks[0].run_step("prefill8/340", range(at, end), tokens[at:end])
    for fast, reference in zip(*[rack.nodes for rack in racks], strict=True):
        reference.chip.sram.bytes[:] = fast.chip.sram.bytes
    results = []
    for rack in racks:
        rack.run_step("prefill8/340", range(316, 324), tokens[316:324])
        token = rack.run_step("decode/340", [324], [tokens[324]])
        assert token.logits is not None
        results.append((token.hash_share, token.logits.tobytes()))
        rack.close()
    assert results[0] == results[1]


def test_a_position_beyond_the_context_is_refused() -> None:
    """A ring would take it."""
    rope = Rope(
        rows=1, dtype="fp16", heads=1, kv_heads=1, head_dim=16, context=1000, ring=320, qkv=0,
        q=640, kv=64 * 320,
    )  # fmt: skip
    bound = Binder(Sram(800 * 320), load_kernels("numpy")).bind(rope)
    bound(StepState(rows=1, positions=np.array([999])))
    with pytest.raises(ValueError, match="positions: wanted less than 1000, got 1000"):
        bound(StepState(rows=1, positions=np.array([1000])))


# -- what they hold and cost


def test_the_slots_of_a_ring() -> None:
    """The window and 127 more, in whole vectors of tokens; none that is longer than the context."""
    assert [ring_of(window, 10_000) for window in (1, 128, 193, 194, 512, 4096)] == [
        320, 320, 320, 640, 640, 4480,
    ]  # fmt: skip
    assert ring_of(4096, 4481) == 4480
    assert ring_of(4096, 4480) is None
    assert ring_of(None, 10_000) is None
    assert MAX_CHUNK <= RING_ROWS


def attends(compiled: CompiledModel, step: str, chip: int = 0) -> list[Attend]:
    operations = compiled.steps[step].programs[chip].operations
    return [one.op for one in operations if isinstance(one.op, Attend)]


def test_a_long_context_costs_no_more_than_the_window() -> None:
    """Neither memory nor cycles, of decode steps and of chunks."""
    some, most = (made(three(100), context=context, chunk=16) for context in (400, 4000))
    for one in (some, most):
        assert one.buckets == (256, one.max_model_len)
        assert [op.bucket for op in attends(one, f"decode/{one.max_model_len}")] == [320] * 3
    assert most.memories == some.memories
    assert most.steps["decode/256"].cycles < most.steps["decode/4000"].cycles
    for name in ("decode", "prefill16", "prefill4"):
        short, long = some.steps[f"{name}/400"], most.steps[f"{name}/4000"]
        assert short.cycles == long.cycles


def test_only_layers_with_a_window_have_rings() -> None:
    compiled = made(three(100, full=1), context=4000, chunk=64, kinds="decode")
    assert [op.ring for op in attends(compiled, "decode/4000")] == [None, 320, 320]
    assert [op.bucket for op in attends(compiled, "decode/4000")] == [4000, 320, 320]
    assert [op.bucket for op in attends(compiled, "decode/256")] == [256] * 3
    sizes = [tensor.size for tensor in compiled.memories[0].tensors if tensor.name.endswith(".kv")]
    assert sizes == [2 * 63 * 64 * 320, *[2 * 320 * 320] * 2]


def test_what_is_no_longer_than_its_ring_is_as_without_one() -> None:
    """Hashes are of plain forms, in which no ring stands."""
    for op in attends(made(three(100), context=320, kinds="decode"), "decode/320"):
        assert (op.ring, op.bucket, op.context) == (None, 320, 320)


def test_more_context_fits_beside_a_window() -> None:
    config, target = three(100, positions=1 << 22), machine("lesson")
    split = partition(build_graph(config), parse_layout("1x1"))
    network = lay_out(three(100), target, split.layout, Options()).network

    def largest(model: ModelConfig) -> int:
        split = partition(build_graph(model), parse_layout("1x1"))
        return largest_context(split, network, target.chip, Options())

    full, half, none = (
        largest(replace(config, windows=(*[None] * n, *[100] * (3 - n)))) for n in (3, 2, 0)
    )
    assert full < half < none == 1 << 22


def test_chips_with_other_windows_are_of_other_classes() -> None:
    """Two groups of two layers each, of which only the second keeps a whole context."""
    config = replace(three(100), num_layers=4, windows=(100, 100, None, 100))
    split = partition(build_graph(config), parse_layout("2x1+1"))
    assert {0, 1} <= set(chip_classes(split, {}).values())


def test_a_chunk_that_would_write_over_its_own_window() -> None:
    config = three(100)
    made(config, context=4000, chunk=221, kinds="decode")
    with pytest.raises(CompilerError) as caught:
        made(config, context=4000, chunk=222, kinds="decode")
    assert str(caught.value) == (
        "prefill_chunk: three keeps 320 tokens for a window of 100, so it wants at most 221, got "
        "222"
    )
    assert made(config, context=320, chunk=222, kinds="decode").prefill_chunk == 222


# -- what is refused, and stored


SPOILED = [
    (Opcode.ATTEND, {"window": 99}, "wanted window 100, as three has it, got 99"),
    (Opcode.ATTEND, {"window": None}, "wanted window 100, as three has it, got None"),
    (Opcode.ATTEND, {"ring": 640}, "wanted ring 320, as three has it, got 640"),
    (Opcode.ATTEND, {"ring": None}, "wanted ring 320, as three has it, got None"),
    (Opcode.ATTEND, {"bucket": 319}, "wanted bucket 320, as three has it, got 319"),
    (Opcode.ATTEND, {"context": 320}, "wanted ring None, as three has it, got 320"),
    (Opcode.ROPE, {"ring": 384}, "wanted ring 320, as three has it, got 384"),
    (Opcode.ROPE, {"ring": None}, "wanted ring 320, as three has it, got None"),
    (Opcode.ROPE, {"rows": 222}, "wanted at most 221 rows, which leave a window of 100 in a ring "
     "of 320, got 222"),
]  # fmt: skip


@pytest.mark.parametrize(("opcode", "change", "text"), SPOILED)
def test_a_spoiled_window_or_ring_is_refused_by_name(
    opcode: Opcode, change: dict[str, int | None], text: str
) -> None:
    compiled = made(three(100, full=1), "1x2", context=400, kinds="decode")
    schedule = compiled.steps["decode/400"]
    check(compiled, schedule)
    name = "rope" if opcode is Opcode.ROPE else "attend"
    old = find(schedule, 1, opcode, f"layers.2.self_attn.{name}")
    with pytest.raises(ScheduleError) as caught:
        check(compiled, edit(schedule, 1, old, replace(old, op=replace(old.op, **change))))
    assert str(caught.value) == f"chip 1, layers.2.self_attn.{name} ({name}): {text}"


def test_a_window_where_the_model_has_none() -> None:
    compiled = made(three(100, full=1), "1x2", context=400, kinds="decode")
    schedule = compiled.steps["decode/400"]
    old = find(schedule, 0, Opcode.ATTEND, "layers.0.self_attn.attend")
    with pytest.raises(ScheduleError) as caught:
        check(compiled, edit(schedule, 0, old, replace(old, op=replace(old.op, window=100))))
    assert str(caught.value) == (
        "chip 0, layers.0.self_attn.attend (attend): wanted window None, as three has it, got 100"
    )


def test_models_without_windows_have_no_rings() -> None:
    config = replace(PRESETS["tiny"], max_position_embeddings=4000)
    compiled = made(config, context=4000, kinds="decode")
    assert compiled.buckets == (256, 512, 1024, 2048, 4000)
    assert {(op.window, op.ring) for op in attends(compiled, "decode/4000")} == {(None, None)}


def test_an_artifact_keeps_the_rings(tmp_path: Path) -> None:
    compiled = made(three(100, full=1), "1x2", context=400, chunk=64)
    images = ((chip, [memoryview(b"")]) for chip in range(2))
    write_artifact(tmp_path / "a", compiled, images, {})
    again, _ = read_artifact(tmp_path / "a", machine("lesson"))
    assert again.schedule_hash == compiled.schedule_hash
    assert [op.ring for op in attends(again, "decode/400")] == [None, 320, 320]
