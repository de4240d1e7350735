"""Chats as transformers renders and encodes them (tests/goldens/make_chats.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_cases import ASKED, CASES, CHATS, write_folder

from rack.text.tokenizer import PromptError, load_tokenizer

GOLDENS = json.loads((CHATS / "goldens.json").read_text(encoding="utf-8"))


def test_every_case_has_its_goldens() -> None:
    assert set(GOLDENS) == set(CASES)
    assert all(set(found) == set(ASKED) for found in GOLDENS.values())


@pytest.mark.parametrize("name", CASES)
def test_text_and_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    write_folder(name, tmp_path)
    tokenizer = load_tokenizer(tmp_path, 1000, None, (), needed=True)
    assert tokenizer.notice is None
    for title, asked in ASKED.items():
        wanted = GOLDENS[name][title]
        asked = {"tools": None, "documents": None, **asked}
        if "error" in wanted:
            with pytest.raises(PromptError) as caught:
                tokenizer.template.render(**asked)
            assert str(caught.value).endswith(f": {wanted['error']}"), title
        else:
            assert tokenizer.template.render(**asked) == wanted["text"], title
            assert tokenizer.apply_chat_template(**asked) == wanted["ids"], title
