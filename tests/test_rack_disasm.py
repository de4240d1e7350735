"""Operations of an artifact as text that assembles again."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip.assembly import assemble, disassemble
from compiler.artifact import read_artifact
from rack.compile import main as compile_main
from rack.disasm import main


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disasm") / "artifact"
    argv = ["tiny", "--layout", "1x2", "--max-model-len", "64", "--prefill-chunk", "4"]
    assert compile_main([*argv, "-o", str(folder)]) == 0
    return folder


def test_an_operation_as_text(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "layers.0.self_attn.qkv_proj"
    assert main([str(artifact), "--chip", "1", "--op", name]) == 0
    head, _, text = capsys.readouterr().out.partition("\n")
    assert "matmul" in head
    assert name in head
    for mnemonic in ("READ", "LW", "IW", "ABC", "ACC", "CVT_F32", "WRITE"):
        assert f"  {mnemonic} " in text, mnemonic
    compiled, _ = read_artifact(artifact)
    assert disassemble(assemble(text, compiled.chip)).strip() == text.strip()


def test_a_list_of_operations(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(artifact)]) == 0
    assert "layers.0.self_attn.qkv_proj" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--chip", "2"], "chip: wanted 0 to 1, got 2"),
        (["--op", "nothing"], "op: chip 0 has no 'nothing' in step decode/64"),
        (["--step", "nothing"], "step: wanted one of decode/64"),
    ],
)
def test_what_is_not_there(
    artifact: Path, argv: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(artifact), *argv]) == 1
    assert text in capsys.readouterr().err
