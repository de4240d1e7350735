"""Folders with chat templates in the shape of published ones, and chats to render.

Plain data and files, without the project: tests/goldens/make_chats.py reads it with transformers,
tests/test_chat_goldens.py with the project.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHATS = Path(__file__).parent / "goldens" / "chats"


@dataclass(frozen=True)
class Case:
    """A folder: which tokenizer, which special tokens, and where its files say so.

    `kind` is "byte" (Llama 3, Qwen) or "spm" (Llama 2, Mistral). The template is NAME.jinja; it
    stands in tokenizer_config.json unless `file`. `more` are templates by name.
    """

    kind: str
    tokens: dict[str, Any]
    file: bool = False
    more: dict[str, str] = field(default_factory=dict)
    in_map: bool = False  # the tokens stand in special_tokens_map.json


def _added(content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **flags}


_SPM = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
_QWEN = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
CASES = {
    "llama2": Case("spm", {key: _added(text) for key, text in _SPM.items()}, in_map=True),
    "llama3": Case("byte", _LLAMA3),
    "llama31": Case("byte", _LLAMA3, file=True),
    "mistral1": Case("spm", {**_SPM, "pad_token": None}),
    "mistral3": Case("spm", _SPM),
    "mixtral": Case("spm", _SPM, file=True),
    "gemma2": Case("spm", {**_SPM, "bos_token": "<bos>", "eos_token": "<eos>"}),
    "qwen25": Case("byte", {**_QWEN, "additional_special_tokens": ["<|im_start|>"]}),
    "qwen3": Case("byte", _QWEN, file=True),
    "chatml": Case("byte", {"eos_token": "<|im_end|>"}, in_map=True),
    "zephyr": Case("spm", {**_SPM, "pad_token": "</s>"}),
    "phi3": Case("spm", {**_SPM, "eos_token": "<|endoftext|>"}),
    "deepseek": Case(
        "byte", {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    ),
    "harmony": Case("byte", {"eos_token": "<|return|>", "pad_token": "<|endoftext|>"}, file=True),
    "command": Case(
        "byte",
        {"bos_token": "<BOS_TOKEN>", "pad_token": "<PAD>", "unk_token": "<UNK>"},
        more={"tool_use": "command_tools"},
    ),
    "command_files": Case(
        "byte",
        {"bos_token": _added("<BOS_TOKEN>"), "pad_token": "<PAD>", "unk_token": _added("<UNK>")},
        file=True,
        more={"tool_use": "command_tools"},
        in_map=True,
    ),
}
SPECIAL = {
    "spm": [
        *("<unk>", "<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        *("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    ],
    "byte": [
        *("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        *("<|python_tag|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start|>", "<|end|>"),
        *("<|message|>", "<|channel|>", "<|call|>", "<|return|>"),
        *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        *("<BOS_TOKEN>", "<PAD>", "<UNK>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        *("<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    ],
}


def template(name: str) -> str:
    """Give a template's text."""
    return (CHATS / f"{name}.jinja").read_text(encoding="utf-8")


def write_folder(name: str, folder: Path) -> None:
    """Write a case's tokenizer files."""
    case = CASES[name]
    folder.mkdir(exist_ok=True)
    shutil.copyfile(CHATS / f"{case.kind}.json", folder / "tokenizer.json")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    text = template(name.removesuffix("_files"))
    more = {other: template(file) for other, file in case.more.items()}
    if case.file:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        for other, source in more.items():
            path = folder / "additional_chat_templates" / f"{other}.jinja"
            path.write_text(source, encoding="utf-8")
        config["chat_template"] = "not this one"
    elif more:
        named = {"default": text, **more}
        config["chat_template"] = [{"name": n, "template": t} for n, t in named.items()]
    else:
        config["chat_template"] = text
    if case.in_map:
        (folder / "special_tokens_map.json").write_text(json.dumps(case.tokens))
    else:
        config |= case.tokens
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


_WEATHER = {
    "name": "weather", "description": "Tell the weather <of a place> & \"more\".",
    "parameters": {
        "type": "object", "required": ["place"],
        "properties": {
            "place": {"type": "string", "description": "As in Zürich"},
            "unit": {"type": "string", "enum": ["°C", "°F"], "default": "°C"},
            "days": {"type": "array", "items": {"type": "integer"}},
        },
    },
}  # fmt: skip
_CLOCK = {"name": "clock", "description": "Tell the time.", "parameters": {
    "type": "object", "properties": {}, "required": [],
}}  # fmt: skip
TOOLS = [{"type": "function", "function": function} for function in (_WEATHER, _CLOCK)]
DOCUMENTS = [{"title": "Tall 山", "text": "It is high.\n"}, {"title": "Low", "text": "It is not."}]

_SYSTEM = {"role": "system", "content": "Be <brief> & 'kind'.\n"}
_ASK = {"role": "user", "content": " Wie heiß ist es in Zürich? 🙂 "}
_CALL = {
    "role": "assistant", "content": None, "reasoning_content": "I should look.\n",
    "tool_calls": [{
        "id": "abc123XYZ", "type": "function",
        "function": {"name": "weather", "arguments": {"place": "Zürich", "days": [1, 2]}},
    }],
}  # fmt: skip
_RESULT = {"role": "tool", "tool_call_id": "abc123XYZ", "name": "weather", "content": '{"t": 31}'}
_SAID = {"role": "assistant", "content": "<think>\nWarm.\n</think>\n\nIt is 31 °C."}
_THANKS = {"role": "user", "content": "Thank </s> you<|im_end|>"}

ASKED: dict[str, dict[str, Any]] = {
    "one": {"messages": [_ASK]},
    "system": {"messages": [_SYSTEM, _ASK]},
    "turns": {"messages": [_SYSTEM, _ASK, _SAID, _THANKS]},
    "no system": {"messages": [_ASK, _SAID, _THANKS]},
    "tools": {"messages": [_ASK], "tools": TOOLS},
    "called": {"messages": [_SYSTEM, _ASK, _CALL, _RESULT], "tools": TOOLS},
    "answered": {"messages": [_ASK, _CALL, _RESULT, _SAID, _THANKS], "tools": TOOLS},
    "documents": {"messages": [_SYSTEM, _ASK], "documents": DOCUMENTS},
    "odd": {"messages": [_ASK, _ASK]},
}
"""What is asked of every template; some refuse some."""
