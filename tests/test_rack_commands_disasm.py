"""Operations of an artifact as text that assembles again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chip.isa.assembly import assemble, disassemble
from compiler.pipeline import CompiledModel
from rack.commands.compile import main as compile_main
from rack.commands.disasm import main
from rack.run.config import RunConfig
from rack.run.stored import load_stored


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disasm") / "artifact"
    argv = ["tiny", "--layout", "1x2", "--max-model-len", "64", "--prefill-chunk", "4"]
    assert compile_main([*argv, "-o", str(folder)]) == 0
    return folder


def stored(folder: Path) -> CompiledModel:
    return load_stored(RunConfig(model=str(folder)))[2]


def test_an_operation_as_text(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "layers.0.self_attn.qkv_proj"
    assert main([str(artifact), "--chip", "1", "--op", name]) == 0
    head, _, text = capsys.readouterr().out.partition("\n")
    assert "matmul" in head
    assert name in head
    for mnemonic in ("READ", "LW", "IW", "ABC", "ACC", "CVT_F32", "WRITE"):
        assert f"  {mnemonic} " in text, mnemonic
    model = stored(artifact)
    assert disassemble(assemble(text, model.chip)).strip() == text.strip()


def test_a_reader_that_has_seen_enough(artifact: Path) -> None:
    command = [sys.executable, "-m", "rack.disasm", str(artifact), "--chip", "1", "--op"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "layers.0.mlp.gate_up_proj"], **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_a_transfer_and_a_queue_as_text(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "layers.0.self_attn.attend"
    assert main([str(artifact), "--op", name]) == 0
    text = capsys.readouterr().out
    for mnemonic in ("send ", "receive ", "  SEND port=", "  RECEIVE port=", "  EXP "):
        assert mnemonic in text, mnemonic
    assert main([str(artifact), "--queue", "SXM_W8"]) == 0
    head, first, *rest = capsys.readouterr().out.splitlines()
    assert (head.split()[0], first) == (".origin", ".queue SXM_W8")
    assert {line.split()[0] for line in rest if line} <= {
        "SYNC",
        "NOP",
        "SEND",
        "RECEIVE",
        "REPEAT",
    }


def test_a_chip_that_stops_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every queue in use has the RUNTIME_DESKEW; the first waits for an epoch in the beginning."""
    profile = tmp_path / "stops.toml"
    profile.write_text(
        'name = "stops"\ninherits = "groqrack-drift"\n[clock]\n'
        'drift_ppm = { value = 400, source = "assumption: enough to stop in mid-step" }\n'
        'realign_cycles = { value = 16_384, source = "assumption: likewise" }\n'
    )
    argv = ["tiny", "--hardware", str(profile), "--layout", "1x1", "--max-model-len", "32"]
    assert compile_main([*argv, "--prefill-chunk", "8", "-o", str(tmp_path / "a")]) == 0
    step = stored(tmp_path / "a").steps["prefill8/32"]
    begin, end = step.programs[0].realign[-1]
    for queue in ("MEM_W0", "VXM3"):
        assert main([str(tmp_path / "a"), "--step", step.name, "--queue", queue]) == 0
        text = capsys.readouterr().out
        assert f"RUNTIME_DESKEW cycles={end - begin} ; realign" in text
        assert ("  DESKEW\n  NOTIFY\n  SYNC\n" in text) == (queue == "MEM_W0")


def test_a_list_of_operations(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(artifact)]) == 0
    assert "layers.0.self_attn.qkv_proj" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--chip", "2"], "chip: wanted 0 to 1, got 2"),
        (["--op", "nothing"], "op: chip 0 has no 'nothing' in step decode/64"),
        (["--queue", "MEM_N0"], "queue: wanted MEM_W0, SXM_E3, MXM_W2, VXM5, ...; got 'MEM_N0'"),
        (["--queue", "SXM_W12"], "queue: SXM_W12 of chip 0 is idle in step decode/64"),
        (["--step", "nothing"], "step: wanted one of decode/64"),
    ],
)
def test_what_is_not_there(
    artifact: Path, argv: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(artifact), *argv]) == 1
    assert text in capsys.readouterr().err
