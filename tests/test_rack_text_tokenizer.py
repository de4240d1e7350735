"""rack.text.tokenizer: prompts get one BOS, streams add up to the whole, files that lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from compiler.errors import ModelError
from rack.text.tokenizer import FILES, PromptError, Tokenizer, load_tokenizer

BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
HEADERS = ["<|start_header_id|>", "<|end_header_id|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
)
CHAT = [{"role": "user", "content": "Hé 🙂"}]


ANY = st.characters(codec="utf-8", exclude_characters="▁")  # which stands for a space


def byte_level() -> tokenizers.Tokenizer:
    """Build a Llama-3-like tokenizer: byte-level, a post-processor that adds BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)} | {"Ġt": 256, "Ġth": 257}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [("Ġ", "t"), ("Ġt", "h")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([BOS, EOS, EOT, *HEADERS])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, inner.token_to_id(BOS))]
    )
    return inner


def byte_fallback() -> tokenizers.Tokenizer:
    """Build a Llama-2-like tokenizer: leading spaces, byte tokens, nothing that adds BOS."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefgh", "▁a"]
    vocab = {token: number for number, token in enumerate(tokens)}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    prefix = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    inner.normalizer = normalizers.Sequence(prefix)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return inner


def folder_with(path: Path, inner: tokenizers.Tokenizer, config: dict[str, Any] | None) -> Path:
    path.mkdir(exist_ok=True)
    inner.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def llama3(path: Path, **config: Any) -> Tokenizer:
    config = {"bos_token": BOS, "eos_token": EOT, "chat_template": TEMPLATE, **config}
    return load_tokenizer(folder_with(path, byte_level(), config), 263, 258, (259, 260))


def llama2(path: Path, **config: Any) -> Tokenizer:
    config = {"bos_token": {"content": "<s>"}, "add_bos_token": True, **config}
    return load_tokenizer(folder_with(path, byte_fallback(), config), 300, 1, (2,))


def streamed(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> str:
    stream = tokenizer.stream(context)
    return "".join([stream.feed(token_id) for token_id in ids]) + stream.flush()


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """Give one tokenizer of each kind."""
    path = tmp_path_factory.mktemp("tokenizers")
    return [llama3(path / "3"), llama2(path / "2"), load_tokenizer(None, 300, None, ())]


def test_golden_prompts_and_texts(stories260k: Path) -> None:
    tokenizer = load_tokenizer(stories260k, 512, 1, (2,))
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.bos_id) == ("tokenizer.json", 512, 1)
    assert tokenizer.is_eos(2)
    assert not tokenizer.is_eos(1)
    goldens = json.loads((stories260k / "greedy.json").read_text())
    assert goldens
    for golden in goldens:
        prompt, ids = golden["prompt_token_ids"], golden["token_ids"]
        assert tokenizer.encode(golden["prompt"]) == prompt
        assert tokenizer.decode(ids) == golden["text"]
        assert streamed(tokenizer, ids) == golden["text"]
        answer = streamed(tokenizer, ids[len(prompt) :], context=prompt)
        assert golden["prompt"] + answer == golden["text"]


def test_a_model_without_a_template_gets_plain_lines(stories260k: Path) -> None:
    tokenizer = load_tokenizer(stories260k, 512, 1, (2,))
    assert tokenizer.notice == (
        "no chat template: chats are given to the model as plain `role: content` lines"
    )
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert ids == tokenizer.encode("user: Hi\nassistant:")
    assert ids.count(1) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 262), max_size=30))
def test_a_stream_adds_up_to_the_whole(every: list[Tokenizer], ids: list[int]) -> None:
    for tokenizer in every:
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(ANY, max_size=20), st.text("ab th☃é", max_size=10))
def test_text_survives(every: list[Tokenizer], text: str, answer: str) -> None:
    for tokenizer in every:
        prompt = tokenizer.encode(text)
        assert tokenizer.decode(prompt) == text
        ids = tokenizer.encode(text + answer)
        if ids[: len(prompt)] == prompt:
            assert text + streamed(tokenizer, ids[len(prompt) :], context=prompt) == text + answer


def test_pieces_hold_whole_characters_only(every: list[Tokenizer]) -> None:
    for tokenizer in every:
        stream = tokenizer.stream()
        pieces = [stream.feed(token_id) for token_id in tokenizer.encode("a🙂b")]
        assert [piece for piece in [*pieces, stream.flush()] if piece] in (
            ["a", "🙂", "b"],
            ["a", "🙂b"],  # byte tokens are held until their run has ended
        )


def test_half_a_character_at_the_end_is_flushed(every: list[Tokenizer]) -> None:
    for tokenizer in every:
        ids = tokenizer.encode("a🙂")[:-1]
        stream = tokenizer.stream()
        assert "".join(map(stream.feed, ids)) == "a"
        assert set(stream.flush()) == {"\ufffd"}
        assert stream.flush() == ""


def test_a_first_word_keeps_its_space_after_a_prompt(tmp_path: Path) -> None:
    tokenizer = llama2(tmp_path)
    prompt, word = tokenizer.encode("b"), tokenizer.encode("ab")[1:]
    assert tokenizer.decode(word) == streamed(tokenizer, word) == "ab"
    assert streamed(tokenizer, word, context=prompt) == " ab"


@pytest.mark.parametrize("text", ["abc", "<s>abc", "<s><s>abc", ""])
def test_bos_comes_once_where_wanted(tmp_path: Path, text: str) -> None:
    ids = llama2(tmp_path).encode(text)
    assert (ids[0], ids.count(1)) == (1, 1)


def test_bos_stays_away_where_not_wanted(tmp_path: Path) -> None:
    assert llama3(tmp_path / "a").encode("t")[0] == 258  # tokenizer.json adds it by itself
    assert 258 not in llama3(tmp_path / "b", add_bos_token=False).encode("t")
    assert 1 not in llama2(tmp_path / "c", add_bos_token=False).encode("a")


def test_eos_ids_are_the_models(tmp_path: Path) -> None:
    assert llama3(tmp_path).eos_ids == {259, 260}
    assert load_tokenizer(tmp_path, 263, 258, ()).eos_ids == {260}  # tokenizer_config.json's


def test_a_template_that_writes_bos_gets_no_second_one(tmp_path: Path) -> None:
    for add_bos in (None, True, False):
        tokenizer = llama3(tmp_path, add_bos_token=add_bos)
        assert tokenizer.notice is None
        ids = tokenizer.apply_chat_template(CHAT)
        assert [*ids[:2], ids[-1]] == [258, 261, 260]
        assert ids.count(258) == 1
        assert tokenizer.decode(ids) == "user\n\nHé 🙂"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token": "<bos>"}, "bos_token: wanted a token of tokenizer.json, got '<bos>'"),
        ({"eos_token": 7}, "eos_token: wanted a token of tokenizer.json, got 7"),
        ({"pad_token": ["<pad>"]}, "pad_token: wanted a token of tokenizer.json, got ['<pad>']"),
        ({"image_token": {}}, "image_token: wanted a token of tokenizer.json, got {}"),
        ({"pad_token": "\ud800"}, "pad_token: wanted a token of tokenizer.json, got '\\ud800'"),
        (
            {"additional_special_tokens": "<x>"},
            "additional_special_tokens: wanted a list of tokens, got '<x>'",
        ),
        (
            {"additional_special_tokens": [1]},
            "additional_special_tokens: wanted a token of tokenizer.json, got 1",
        ),
        ({"add_bos_token": 1}, "add_bos_token: wanted a bool, got 1"),
        (
            {"added_tokens_decoder": []},
            "added_tokens_decoder: wanted an object of tokens by id, got []",
        ),
        (
            {"added_tokens_decoder": {"-1": {}}},
            "added_tokens_decoder: wanted token ids as keys, got '-1'",
        ),
        (
            {"added_tokens_decoder": {"7": "<x>"}},
            "added_tokens_decoder.7: wanted a token with its content, got '<x>'",
        ),
        (
            {"added_tokens_decoder": {"7": {"content": "<x>", "lstrip": 1}}},
            "added_tokens_decoder.7.lstrip: wanted a bool, got 1",
        ),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        llama3(tmp_path, **config)
    assert str(caught.value) == f"{tmp_path / 'tokenizer_config.json'}: {message}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "wanted a file of the tokenizers library, got "),
        ("tokenizer_config.json", "{", "wanted valid JSON, got Expecting property name"),
        ("tokenizer_config.json", "[]", "wanted a JSON object, got list"),
    ],
)
def test_files_that_are_broken(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = folder_with(tmp_path, byte_level(), {})
    (folder / name).write_text(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder, 263, 258, ())
    assert str(caught.value).startswith(f"{folder / name}: {message}")


def test_special_tokens_come_from_every_file(tmp_path: Path) -> None:
    show = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ image_token }}"
    show += "{{ additional_special_tokens | join }}"
    inner = byte_level()
    inner.enable_padding(pad_token=HEADERS[0], pad_id=261)
    config = {"chat_template": show, "eos_token": EOS, "image_token": HEADERS[1]}
    folder = folder_with(tmp_path, inner, config)

    def shown(**also: Any) -> str:
        if also:
            (folder / "tokenizer_config.json").write_text(json.dumps(config | also))
        return load_tokenizer(folder, 263, None, ()).template.render(CHAT)

    assert shown() == EOS + HEADERS[0] + HEADERS[1]  # tokenizer.json pads
    named = {"eos_token": {"content": EOT}, "unk_token": BOS, "additional_special_tokens": [EOS]}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    assert shown() == EOT + HEADERS[0] + BOS + HEADERS[1] + EOS  # and the map overrides
    assert load_tokenizer(folder, 263, None, ()).eos_ids == {260}
    assert shown(pad_token=EOS) == EOT + EOS + BOS + HEADERS[1] + EOS
    assert shown(added_tokens_decoder={}) == EOS + HEADERS[0] + HEADERS[1]  # as it has these
    assert shown(added_tokens_decoder={}, extra_special_tokens={"unk_token": EOT}) == (
        EOS + HEADERS[0] + EOT + HEADERS[1]
    )


def test_tokens_that_the_tokenizer_lacks_are_added_and_said(tmp_path: Path) -> None:
    listed = {"9": {"content": "<b>", "special": True}, "10": {"content": "<a>"}}
    inner = llama3(tmp_path / "a", pad_token="<pad>", added_tokens_decoder=listed)
    assert inner.notice == (
        "tokens that tokenizer.json lacks are added, as transformers does: '<b>' (263), "
        "'<a>' (264), '<pad>' (265)"
    )
    with pytest.raises(PromptError, match="token id 264: wanted 0 to 262"):
        inner.encode("<a>")
    old = folder_with(tmp_path / "b", byte_level(), {"add_bos_token": False})
    (old / "added_tokens.json").write_text('{"<z>": 263, "<y>": 264}')
    assert load_tokenizer(old, 265, None, ()).encode("<y><z>") == [264, 263]
    (old / "added_tokens.json").write_text('{"<z>": "263"}')
    with pytest.raises(ModelError, match=r"added_tokens.json: <z>: wanted a token id, got '263'"):
        load_tokenizer(old, 265, None, ())


def test_a_special_token_of_the_vocabulary_is_one_token(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, byte_level(), {"add_bos_token": False})
    assert len(load_tokenizer(folder, 263, None, ()).encode("th")) == 2
    folder_with(tmp_path, byte_level(), {"add_bos_token": False, "pad_token": "Ġth"})
    assert load_tokenizer(folder, 263, None, ()).encode("Ġth") == [257]


def test_tokenizer_json_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, byte_level(), None)
    path = folder / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_tokenizer(folder, 263, 258, ()).encode("t")[0] == 258


def test_a_tokenizer_that_draws_lots_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, byte_level(), None)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"tokenizer.json: model.dropout: wanted none, got 0.5"):
        load_tokenizer(folder, 263, None, ())


@pytest.mark.parametrize("name", [*FILES, "additional_chat_templates"])
def test_every_file_is_there_or_not(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, byte_level(), {})
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("gone")
    with pytest.raises(ModelError, match=f"{name}: wanted a file, got a link to gone, which is"):
        load_tokenizer(folder, 263, None, ())


@pytest.mark.parametrize(
    ("names", "got"),
    [
        ([], "nothing"),
        (["tokenizer.model"], "only tokenizer.model, which is not read"),
        (["vocab.json", "merges.txt"], "only vocab.json, which is not read"),
    ],
)
def test_real_answers_need_a_real_tokenizer(tmp_path: Path, names: list[str], got: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"\n")
    assert load_tokenizer(tmp_path, 263, None, ()).kind == "bytes"
    with pytest.raises(ModelError) as caught:
        load_tokenizer(tmp_path, 263, None, (), needed=True)
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.json'}: wanted a file (transformers writes one: AutoTokenizer, "
        f"then save_pretrained), got {got}"
    )
    assert load_tokenizer(None, 263, None, (), needed=True).kind == "bytes"  # synthetic weights


def test_a_folder_may_lack_its_config(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path, byte_level(), None), 263, 258, (259,))
    assert (tokenizer.bos_id, tokenizer.encode("t")[0]) == (258, 258)
    assert tokenizer.template.is_plain


def test_ids_outside_the_model_are_refused(every: list[Tokenizer]) -> None:
    for tokenizer in every:
        limit = tokenizer.vocab_size
        for bad in (-1, limit):
            with pytest.raises(PromptError) as caught:
                tokenizer.decode([bad])
            assert str(caught.value) == f"token id {bad}: wanted 0 to {limit - 1}"
            with pytest.raises(PromptError):
                tokenizer.stream().feed(bad)


def test_tokens_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(
        folder_with(tmp_path, byte_level(), {"add_bos_token": False}), 257, None, ()
    )
    with pytest.raises(PromptError, match="token id 257: wanted 0 to 256"):
        tokenizer.encode(" th")
    assert tokenizer.encode(" t") == [256]


def test_half_a_surrogate_pair_is_refused(every: list[Tokenizer]) -> None:
    for tokenizer in every:
        with pytest.raises(PromptError) as caught:
            tokenizer.encode("ab\ud83d")
        assert str(caught.value) == ("text: wanted whole Unicode characters, got '\\ud83d' at 2")


def test_the_byte_tokenizer() -> None:
    tokenizer = load_tokenizer(None, 128256, None, ())
    assert (tokenizer.kind, tokenizer.bos_id, tokenizer.eos_ids) == ("bytes", 256, {257})
    assert tokenizer.encode("hé") == [256, 104, 195, 169]
    assert tokenizer.decode([256, 104, 195, 1234, 169, 257]) == "h\ufffd<t1234>\ufffd"
    assert tokenizer.decode([195, 256, 169]) == "é"
    assert tokenizer.notice == (
        "no tokenizer.json: a byte tokenizer is used (one token per UTF-8 byte); no chat "
        "template: chats are given to the model as plain `role: content` lines"
    )
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    assert tokenizer.decode(ids) == "user: x\nassistant:"
    assert ids.count(256) == 1


def test_the_byte_tokenizer_uses_the_models_own_bos_and_eos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path, 128256, 128000, (128001, 128009))
    assert tokenizer.encode("h") == [128000, 104]
    assert tokenizer.is_eos(128009)
    assert tokenizer.decode([128000, 104, 128001, 256]) == "h<t256>"


def test_the_byte_tokenizer_of_a_small_vocabulary() -> None:
    tokenizer = load_tokenizer(None, 131, 1, (2,))
    assert tokenizer.encode("h") == [1, 104]
    with pytest.raises(PromptError) as caught:
        tokenizer.encode("é")
    assert str(caught.value) == (
        "byte 0xc3: this model has no tokenizer and only 131 token ids, so it can only be given "
        "bytes below 0x83"
    )
    with pytest.raises(PromptError) as caught:
        tokenizer.encode("\x02")
    assert str(caught.value) == (
        "byte 0x02: this model has no tokenizer, and uses token id 2 for BOS or EOS"
    )
    without = load_tokenizer(None, 256, None, ())
    assert (without.bos_id, without.eos_ids) == (None, frozenset())
    assert without.encode("h") == [104]
