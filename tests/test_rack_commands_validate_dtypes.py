"""`rack.validate dtypes`: likelihood of texts and error of logits, against plain models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from int_model import IntLlama, mean_nll
from safetensors.numpy import load_file

from rack.commands.validate import main
from rack.reports import dtypes
from rack.reports.dtypes import Cost, markdown

GOLDENS = Path(__file__).parent / "goldens"


def integer_model(folder: Path, group: int | None) -> IntLlama:
    config = json.loads((folder / "config.json").read_text())
    return IntLlama(config, load_file(folder / "model.safetensors"), group)


def costs(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    assert main(["dtypes", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["costs"]


def test_errors_of_logits_are_those_of_the_plain_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dtypes, "WAYS", (("int8", None), ("int4", 32)))
    golden = np.load(GOLDENS / "gqa" / "golden.npz")
    rows = costs(GOLDENS / "gqa", capsys)
    for row, group in zip(rows, (None, 32), strict=True):
        logits = integer_model(GOLDENS / "gqa", group).logits(golden["token_ids"].tolist())
        error = np.sqrt(np.square(logits - golden["logits"], dtype=np.float64).mean())
        wanted = error / np.sqrt(np.square(golden["logits"], dtype=np.float64).mean())
        assert row["logit_error"] == pytest.approx(wanted, rel=1e-12)
        assert (row["group"], row["nll"], row["tokens"]) == (group, None, 24)


def test_likelihoods_are_those_of_the_plain_model(
    monkeypatch: pytest.MonkeyPatch, stories260k: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(dtypes, "WAYS", (("int4", 64),))
    folder = tmp_path / "stories"
    shutil.copytree(stories260k, folder)
    texts = [{"token_ids": text["token_ids"][:9]} for text in
             json.loads((folder / "greedy.json").read_text())[:2]]  # fmt: skip
    (folder / "greedy.json").write_text(json.dumps(texts))
    (row,) = costs(folder, capsys)
    model = integer_model(folder, 64)
    each = [mean_nll(model.logits(text["token_ids"]), text["token_ids"]) for text in texts]
    assert row["nll"] == pytest.approx(np.mean(each), rel=1e-12)
    assert (row["tokens"], row["logit_error"]) == (18, None)


@pytest.mark.parametrize("texts", ["[]", "{}", '[{"token_ids": [1]}]', '[{"token_ids": "ab"}]'])
def test_texts_that_are_none_are_refused(
    texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gqa"
    shutil.copytree(GOLDENS / "gqa", folder)
    (folder / "greedy.json").write_text(texts)
    assert main(["dtypes", str(folder)]) == 1
    wanted = "greedy.json: wanted a list of objects with token_ids, two or more each, got"
    assert wanted in capsys.readouterr().err
    (folder / "greedy.json").unlink()
    (folder / "golden.npz").unlink()
    assert main(["dtypes", str(folder)]) == 1
    assert "wanted greedy.json or golden.npz in it, got neither" in capsys.readouterr().err


def test_the_page_is_written_and_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dtypes, "WAYS", (("int8", None),))
    page = tmp_path / "page.md"
    page.write_text("<!-- begin: python -m rack.validate dtypes --markdown -->\n<!-- end -->\n")
    gqa = str(GOLDENS / "gqa")
    assert main(["dtypes", gqa, "--check", str(page)]) == 1
    assert "use --markdown" in capsys.readouterr().err
    assert main(["dtypes", gqa, "--markdown", str(page)]) == 0
    assert "| gqa | int8 |  |  | 4.00% |" in page.read_text()
    assert main(["dtypes", gqa, "--check", str(page)]) == 0
    capsys.readouterr()
    assert main(["dtypes", gqa]) == 0
    assert "4.00%" in capsys.readouterr().out


def test_likelihoods_are_held_against_the_first_type() -> None:
    rows = [
        Cost(model="a", dtype="fp16", group=None, tokens=9, nll=2.0),
        Cost(model="a", dtype="int4", group=64, tokens=9, nll=2.5),
    ]
    assert "| a | fp16 | 2.0000 | +0.00% |  |" in markdown(rows)
    assert "| a | int4, a scale for 64 rows | 2.5000 | +25.00% |  |" in markdown(rows)
