"""Spoiled model folders: each is refused in one line, or runs and answers as it should.

A case copies a small checkpoint with all its files and spoils one to three of them: values in
JSON, bytes, what stands in a file's place, tensors. `--fuzz-examples N` asks for more.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from fuzz_kit import at, dump, examples, judge, put, retyped, spoil_bytes, spoil_file, spoil_json
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from rack.run.config import RunConfig
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hé <x>"}]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 264, "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "hidden_act": "silu", "bos_token_id": 256,
    "eos_token_id": 257, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "pretraining_tp": 1, "torch_dtype": "float32",
    "rope_scaling": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<x>{{ m.role }}\n{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}{{ pad_token }}"
)
SPECIAL = ["<s>", "</s>", "<pad>", "<x>"]
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
    "pad_token": {"__type": "AddedToken", "content": "<pad>", "special": True},
    "additional_special_tokens": ["<x>"], "add_bos_token": True,
    "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "r"}],
}  # fmt: skip


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {
        "self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16),
        "mlp.down_proj": (16, 24), "input_layernorm": (16,), "post_attention_layernorm": (16,),
    }  # fmt: skip
    named = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {"model.embed_tokens.weight": (264, 16), "lm_head.weight": (264, 16)}
    named |= {"model.norm.weight": (16,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in named.items()}


def write_checkpoint(folder: Path) -> None:
    """Write a checkpoint of two shards with every kind of file that is read."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    inner.save(str(folder / "tokenizer.json"))
    every = tensors()
    names = sorted(every)
    shards = {
        "model-00001-of-00002.safetensors": names[:7],
        "model-00002-of-00002.safetensors": names[7:],
    }
    for shard, held in shards.items():
        save_file({name: every[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    files = {
        "config.json": CONFIG,
        "generation_config.json": {"eos_token_id": [257, 258], "bos_token_id": 256},
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "special_tokens_map.json": {"unk_token": "<x>", "eos_token": {"content": "</s>"}},
        "model.safetensors.index.json": {"metadata": {"total_size": 1}, "weight_map": weight_map},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "checkpoint"
    write_checkpoint(folder)
    return folder


@dataclass(frozen=True)
class Answer:
    """What a folder makes of a prompt and a chat: ids, text, ends, a hash of every logit."""

    prompt: tuple[int, ...]
    chat: tuple[int, ...]
    eos: frozenset[int]
    data_hash: str
    notices: tuple[str, ...]

    def differs(self, other: Answer) -> bool:
        """Say whether this is another answer, and nothing says why."""
        mine, theirs = (replace(answer, notices=()) for answer in (self, other))
        return mine != theirs and self.notices == other.notices


def ask(folder: Path, **options: Any) -> Answer:
    """Load a folder from scratch and let it answer. Raises KNOWN_ERRORS."""
    config = RunConfig(
        model=str(folder), layout="1x1", transport="local", max_model_len=8, prefill_chunk=1,
        **options,
    )  # fmt: skip
    prepared = prepare(config, contexts=[8])
    tokenizer = prepared.tokenizer
    prompt, chat = tokenizer.encode("hé"), tokenizer.apply_chat_template(CHAT)
    with Session(prepared) as session:
        done = session.engine.generate(prompt, SamplingParams(max_tokens=2, temperature=0)).run()
    assert done.data_hash is not None
    notices = tuple(prepared.notices)
    return Answer(tuple(prompt), tuple(chat), tokenizer.eos_ids, done.data_hash, notices)


def change(folder: Path, name: str, path: tuple[str | int, ...], value: Any) -> None:
    file = folder / name
    file.write_text(dump(put(json.loads(file.read_text()), path, value)))


# -- anything may be wrong


def spoil(rng: random.Random, folder: Path) -> str:
    """Do one thing to a folder, and say what."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = rng.choice(files)
    how = rng.choice(("content", "content", "content", "bytes", "place"))
    if how == "place":
        return spoil_file(rng, path)
    data = path.read_bytes()
    if how == "bytes" or not path.suffix.endswith(("json", "tensors")):
        data, what = spoil_bytes(rng, data, most=2000)
    elif path.suffix == ".json":
        data, what = spoil_json(rng, data)
    else:
        length = int.from_bytes(data[:8], "little")
        header, what = spoil_json(rng, data[8 : 8 + length])
        stated = rng.choice((len(header), len(header), len(header), length, 2**63, 2**31))
        data = struct.pack("<Q", stated) + header + data[8 + length :]
    path.write_bytes(data)
    return f"{path.name}: {what}"


def spoiled(case: int, checkpoint: Path, home: Path) -> tuple[Path, str]:
    """Make the folder of a case: a copy of the checkpoint under any name, and what is wrong."""
    rng = random.Random(f"folder {case}")
    name = os.fsdecode(rng.choice((b"model", b"model", b"caf\xe9", "\u6a21".encode(), b"n" * 200)))
    folder = home / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    if rng.random() < 0.2:
        (folder / "chat_template.jinja").write_bytes(rng.choice(TEMPLATES))
    done: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            done.append(spoil(rng, folder))
        except (ValueError, LookupError, RecursionError):
            break  # what was spoiled before cannot be read to be spoiled again
    return folder, f"case {case}: {'; '.join(done)}"


TEMPLATES = (
    TEMPLATE.encode(), b"\xff\xfe", b"{% if", b"{{ 9 ** 9 ** 9 ** 9 }}", b"{{ 'x' * 10 ** 12 }}",
    b"{% for i in [1] %}" * 300 + b"{% endfor %}" * 300, b"(" * 3000, b"{{" + b"(" * 3000,
    b"{{ " + b"9" * 5000 + b" }}", b"{% generation %}x{% endgeneration %}", b"{{ 1 / 0 }}",
)  # fmt: skip


def test_spoiled_folders(checkpoint: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    outcomes: Counter[str] = Counter()
    for case in range(examples(pytestconfig)):
        folder, what = spoiled(case, checkpoint, tmp_path)
        outcome = judge(what, lambda folder=folder: ask(folder))
        outcomes["refused" if outcome.refusal else "answered"] += 1
    few = outcomes.total() // 20
    assert outcomes["refused"] > few, outcomes
    assert outcomes["answered"] > few, outcomes


# -- what means the same answers the same


@pytest.fixture(scope="module")
def answer(checkpoint: Path) -> Answer:
    return ask(checkpoint)


def places_of(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if not isinstance(value, dict):
        return [path]
    return [path, *(inner for key in value for inner in places_of(value[key], (*path, key)))][
        not path :
    ]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_value_of_another_type_changes_nothing_in_silence(
    checkpoint: Path, answer: Answer, tmp_path: Path, name: str
) -> None:
    content = json.loads((checkpoint / name).read_text())
    shutil.copytree(checkpoint, tmp_path / "model")
    for path in places_of(content):
        for value in retyped(at(content, path)):
            if value is None or (path == ("chat_template",) and isinstance(value, str)):
                continue  # means something: there is none, or this is the template
            change(tmp_path / "model", name, (), content)
            change(tmp_path / "model", name, path, value)
            outcome = judge(f"{name}: {path} is {value!r}", lambda: ask(tmp_path / "model"))
            same = outcome.result is None or not outcome.result.differs(answer)
            assert same, (name, path, value, outcome.result)


def test_other_forms_of_the_same_folder_answer_the_same(
    checkpoint: Path, answer: Answer, tmp_path: Path
) -> None:
    """Byte order marks, whole floats, links into a store, files that are nobody's."""
    store, folder = tmp_path / "blobs", tmp_path / "model"
    shutil.copytree(checkpoint, store)
    folder.mkdir()
    for number, path in enumerate(sorted(store.iterdir())):
        if path.suffix == ".json" and path.name != "tokenizer.json":
            value = json.loads(path.read_bytes(), parse_int=float)
            path.write_bytes(b"\xef\xbb\xbf" + json.dumps(value, indent=3).encode())
        path.rename(store / str(number))
        (folder / path.name).symlink_to(f"../blobs/{number}")
    for name in ("README.md", ".gitattributes", "training_args.bin", "original", "caf\udce9.json"):
        (folder / name).write_bytes(b"\xff")
    assert ask(folder) == answer


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(
    checkpoint: Path, tmp_path: Path, dtype: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    for path in sorted(folder.glob("*.safetensors")):
        held = load_file(path)
        for name, values in held.items():
            spoilt = values.copy()
            spoilt[-1] = np.nan if spoilt.ndim == 1 else [*spoilt[-1][:-1], np.inf]
            save_file({**held, name: spoilt}, path)
            where = (
                "element 15"
                if spoilt.ndim == 1
                else "row {}, column {}".format(*(n - 1 for n in spoilt.shape))
            )
            outcome = judge(name, lambda: ask(folder, dtype=dtype))
            line = f"{path}: {name}: {where}: wanted a finite value, got "
            assert outcome.refusal in (line + "nan", line + "inf")
        save_file(held, path)


def test_fp16_does_not_hold_every_weight_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    name = "model.layers.0.mlp.down_proj.weight"
    path = next(p for p in folder.glob("*.safetensors") if name in load_file(p))
    held = load_file(path)
    held[name][4, 5] = 1e30
    save_file(held, path)
    assert ask(folder).notices == ()
    outcome = judge(name, lambda: ask(folder, dtype="fp16"))
    place = f"{path}: {name}: row 4, column 5"
    assert outcome.refusal == f"{place}: wanted at most 65504 for fp16, got 1.0000000150474662e+30"
