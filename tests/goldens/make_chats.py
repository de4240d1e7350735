"""Make the tokenizers in chats/ and what transformers renders and encodes with them.

`make goldens` runs this with transformers and tokenizers as requirements.txt has them; the tests
need neither. A tokenizer that is there is kept, as the templates are: take its file away to train
it anew.

`chats/goldens.json` has, by case and by chat (tests/chat_cases.py), the text and the ids, or the
error. The clock stands still on the day that the project's does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).parent.parent))
from chat_cases import ASKED, CASES, CHATS, SPECIAL, template, write_folder

TODAY = datetime(2024, 7, 26)


class StoppedClock(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return TODAY


def make_tokenizer(kind: str) -> tokenizers.Tokenizer:
    """Train a small BPE on the templates themselves: byte-level, or with byte fallback."""
    texts = [template(path.stem) for path in sorted(CHATS.glob("*.jinja"))]
    texts.append(json.dumps(ASKED, ensure_ascii=False))
    if kind == "byte":
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), []
    else:
        inner = tokenizers.Tokenizer(
            models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
        )
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        inner.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        alphabet, special = [], ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(alphabet), special_tokens=special,
        limit_alphabet=60 if kind == "spm" else 256, max_token_length=12, show_progress=False,
    )  # fmt: skip
    if kind == "spm":  # words, so that merges do not run over spaces while training
        inner.pre_tokenizer, held = pre_tokenizers.Metaspace(), inner.pre_tokenizer
        inner.train_from_iterator(texts, trainer)
        inner.pre_tokenizer = held
        content = json.loads(inner.to_str())  # byte tokens are no special tokens
        content["added_tokens"] = []
        inner = tokenizers.Tokenizer.from_str(json.dumps(content))
    else:
        inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens(SPECIAL[kind])
    first = "<s>" if kind == "spm" else "<|begin_of_text|>"
    inner.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, inner.token_to_id(first))]
    )
    return inner


def golden(tokenizer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Render and encode one chat."""
    asked = {"conversation": asked["messages"], **asked}
    del asked["messages"]
    try:
        text = tokenizer.apply_chat_template(**asked, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        return {"error": str(error)}
    ids = tokenizer.apply_chat_template(**asked, add_generation_prompt=True, return_dict=False)
    return {"text": text, "ids": ids}


def main() -> None:
    print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
    transformers.utils.chat_template_utils.datetime = StoppedClock
    for kind in SPECIAL:
        file = CHATS / f"{kind}.json"
        if not file.exists():
            content = json.loads(make_tokenizer(kind).to_str())
            file.write_text(json.dumps(content, ensure_ascii=False))
    out: dict[str, Any] = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as home:
            write_folder(name, Path(home) / "folder")
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(Path(home) / "folder"))
            out[name] = {title: golden(tokenizer, asked) for title, asked in ASKED.items()}
        errors = sum("error" in found for found in out[name].values())
        print(f"{name}: {len(ASKED) - errors} chats rendered, {errors} refused")
    text = json.dumps(out, ensure_ascii=False, indent=0, separators=(",", ":"))
    (CHATS / "goldens.json").write_text(text.replace(",\n", ",") + "\n")


if __name__ == "__main__":
    main()
