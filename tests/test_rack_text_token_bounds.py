"""What is known of tokens before any text is encoded, and a tokenizer in place of the model's."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from schedules import compiled
from test_rack_text_tokenizer import BOS, EOT, byte_fallback, byte_level
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from rack.errors import ConfigError
from rack.run.config import RunConfig
from rack.run.engine import Engine
from rack.run.session import prepare
from rack.run.timing_rack import TimingRack
from rack.text.sampler import SamplingParams
from rack.text.token_bounds import longest_token, plain_words
from rack.text.tokenizer import Tokenizer, load_other_tokenizer, load_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat"]


def with_words() -> tokenizers.Tokenizer:
    """A byte-level tokenizer with some words, and one that its merges do not reach."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        text = "Ġ"
        for letter in word:
            merges += [(text, letter)] if text + letter not in vocab else []
            text += letter
            vocab.setdefault(text, len(vocab))
    vocab["Ġunreached"] = len(vocab)
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([BOS, EOT])
    return inner


def saved(inner: tokenizers.Tokenizer, folder: Path, **config: object) -> Path:
    inner.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_bytes_of_the_longest_token() -> None:
    assert longest_token(byte_level()) == len("<|start_header_id|>")
    plain = byte_level()
    plain.model = models.BPE({**plain.get_vocab(), "Ġ" * 40: 300}, [])
    assert longest_token(plain) == 40


def test_there_is_no_bound_where_text_may_vanish() -> None:
    """Any number of characters may become one token, or none."""
    strips, drops, missing, other = byte_level(), byte_level(), byte_level(), byte_level()
    strips.add_tokens([AddedToken("<x>", rstrip=True)])
    drops.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    missing.model = models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True)
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    normal, bare = byte_level(), byte_level()
    normal.normalizer = normalizers.Strip()
    bare.pre_tokenizer = None
    for inner in (strips, drops, missing, other, normal, bare, byte_fallback()):
        assert longest_token(inner) is None


@given(text=st.text())
def test_a_text_is_never_fewer_tokens_than_its_bytes_say(text: str) -> None:
    inner = with_words()
    longest = longest_token(inner)
    assert longest is not None
    count = len(inner.encode(text, add_special_tokens=False).ids)
    assert -(-len(text.encode()) // longest) <= count


def test_plain_words_are_one_token_each() -> None:
    inner = with_words()
    names = {inner.id_to_token(i) for i in plain_words(inner)}
    assert {f"Ġ{word}" for word in WORDS} <= names
    assert "Ġunreached" not in names
    assert {inner_name[0] for inner_name in names} == {"Ġ"}


@pytest.mark.parametrize("name", ["byte-level", "stories260K"])
def test_every_random_token_is_a_word_that_encodes_to_itself(
    name: str, tmp_path: Path, stories260k: Path
) -> None:
    folder = stories260k if name == "stories260K" else saved(with_words(), tmp_path)
    words: Tokenizer = load_tokenizer(folder, 512, None, ())
    assert len(words.plain_ids) >= len(WORDS)
    prompt = words.encode("Once upon a time")
    engine = Engine(TimingRack(compiled()), words)
    assert engine.compiled.config.vocab_size == 320  # ids beyond it are not drawn by this model
    events = list(engine.generate([i for i in prompt if i < 320], SamplingParams(seed=5)))
    assert all(event.text.startswith(" ") and event.text[1:].isalpha() for event in events)
    text = "".join(event.text for event in events)
    again = words.encode("Once" + text)
    assert again[-len(events) :] == [event.token_id for event in events]


def test_a_preset_with_a_tokenizer_and_its_template(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    saved(
        with_words(), tmp_path, chat_template=template,
        bos_token=BOS, eos_token=EOT,
    )  # fmt: skip
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        config = RunConfig(
            model="tiny", executor="timing", layout="1x1", tokenizer=str(path), transport="local"
        )
        words = prepare(config).tokenizer
        assert words.kind == "tokenizer.json"
        assert words.notice is None
        (eot,) = words.eos_ids
        chat = [{"role": "user", "content": " the cat sat"}]
        ids = words.apply_chat_template(chat)
        assert len(ids) == 5
        assert ids[-1] == eot
        assert pickle.loads(pickle.dumps(words)).apply_chat_template(chat) == ids


def test_without_a_word_of_its_own_the_model_s_end_counts(tmp_path: Path) -> None:
    words = load_other_tokenizer(saved(with_words(), tmp_path), 400, 256, (257,), model="m")
    assert (words.bos_id, words.eos_ids) == (256, {257})


def test_a_tokenizer_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_other_tokenizer(tmp_path, 320, None, (), model="tiny")
    assert str(caught.value) == f"tokenizer: wanted a folder with tokenizer.json, got {tmp_path}"
    count = 1 + max(with_words().get_vocab().values())
    with pytest.raises(ConfigError) as caught:
        load_other_tokenizer(saved(with_words(), tmp_path), 200, None, (), model="small")
    file = tmp_path / "tokenizer.json"
    wanted = f"tokenizer: wanted at most the 200 tokens of small, {file} has {count}"
    assert str(caught.value) == wanted
