"""The cluster files: Ray takes them, they hold the models they name, on anybody's machines."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from compiler.model.presets import PRESETS
from compiler.pipeline import compile_model
from compiler.place.layout import parse_layout
from rack.machines.profile import load_hardware
from rack.run.job import PROCESS_BYTES

ray = pytest.importorskip("ray")
from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "clusters").glob("*.yaml"))
LAYOUTS = {"llama-8b": "8x4+4", "llama-70b": "40x8+8"}
NEEDED = {
    "cluster_name", "provider", "auth", "available_node_types", "head_node_type", "file_mounts",
    "setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
}  # fmt: skip


def by_name(path: Path) -> str:
    return path.stem


def read(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_there_is_one_file_for_each_target() -> None:
    assert {path.stem: read(path)["provider"]["type"] for path in FILES} == {
        "local": "local", "aws": "aws", "gcp": "gcp",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_ray_takes_it(path: Path) -> None:
    config = read(path)
    assert set(config) >= NEEDED
    ready = prepare_config(config)  # defaults filled in, as `ray up` does
    validate_config(ready)
    assert ready["head_node_type"] in ready["available_node_types"]
    on_all, on_head = config["setup_commands"], config["head_setup_commands"]
    wanted = on_all if path.stem == "local" else on_all + on_head
    assert ready["head_setup_commands"] == wanted
    assert ready["worker_setup_commands"] == on_all


def test_the_local_file_is_what_ray_would_make_of_its_hosts() -> None:
    config = read(ROOT / "clusters" / "local.yaml")
    short = {
        key: value
        for key, value in config.items()
        if key not in ("available_node_types", "head_node_type", "max_workers")
        and not key.endswith(("worker_setup_commands", "head_setup_commands"))
    }
    wanted = prepare_config(short)
    assert prepare_config(config) == config  # as it is
    assert config == wanted


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_ray_resolves_it_as_far_as_it_can_offline(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem != "local":
        pytest.skip("Ray asks the cloud for the rest")
    from ray.autoscaler._private import commands

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))  # where it keeps a cache
    config = commands._bootstrap_config(read(path), no_config_cache=True)
    assert config["provider"]["head_ip"] not in config["provider"]["worker_ips"]


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_commands_set_up_and_start_what_we_need(path: Path) -> None:
    config = read(path)
    assert any("make .venv/.ready-run" in command for command in config["setup_commands"])
    assert ".venv/.ready-run" in (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    for role in ("head", "worker"):
        stop, start = config[f"{role}_start_ray_commands"]
        assert "ray stop" not in stop
        assert "export OPENBLAS_NUM_THREADS=1 " in start
        assert "; mkdir -p $RAY_TMPDIR; ray start " in start
        for place in (start, *config["setup_commands"][-1:]):
            assert "RAY_AUTH_MODE=disabled" in place
            assert "RAY_TMPDIR=/tmp/lpu-rack" in place
    assert "--head" in config["head_start_ray_commands"][1]
    assert "--address=$RAY_HEAD_IP:6379" in config["worker_start_ray_commands"][1]


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_only_this_cluster_s_ray_is_ended(path: Path, tmp_path: Path) -> None:
    config = read(path)
    stop = config["head_start_ray_commands"][0]
    assert stop == config["worker_start_ray_commands"][0]
    assert stop.count("/]tmp/lpu-rack/ray/") == 1
    ours = str(tmp_path)[1:] + "/ours"  # not the real one, which may run here
    command = stop.replace("tmp/lpu-rack", ours).replace("sleep 3", "sleep 0.1")
    words = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    folders = (f"/{ours}", str(tmp_path / "theirs"))
    started = [
        subprocess.Popen([*words, f"--log_dir={folder}/ray/session_1/logs"], stdin=subprocess.PIPE)
        for folder in folders
    ]
    try:
        shell = subprocess.run(["bash", "-c", f"{command}; echo done"], capture_output=True)
        assert shell.stdout == b"done\n"
        assert started[0].wait(10.0) == -signal.SIGTERM
        assert started[1].poll() is None
        again = subprocess.run(["bash", "-c", command])  # with nothing to end
        assert again.returncode == 0
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_all_that_the_build_needs_is_copied(path: Path) -> None:
    config = read(path)
    mounts = config["file_mounts"]
    assert all((ROOT / here).exists() for here in mounts.values())
    assert all(there == f"~/lpu-rack/{here}" for there, here in mounts.items())
    packages = {item.parent.name for item in ROOT.glob("*/__init__.py")} - {"tests"}
    build = {name for name in ("pyproject.toml", "setup.py", "README.md") if (ROOT / name).exists()}
    assert set(mounts.values()) == packages | build | {"Makefile"}


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_nothing_of_one_machine_is_in_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for pattern in (r"/home/", r"/Users/", r"/root\b", r"/work/", r"\bami-[0-9a-f]", r"AKIA"):
        assert not re.search(pattern, text), pattern
    for host in re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text):
        assert host.startswith("10.0.0.")
    for command in ("ray up", "ray exec", "ray submit", "ray down"):
        assert f"#   {command} clusters/{path.name}" in text
    assert "RAY_ADDRESS=auto python -m rack.generate llama-70b --prompt" in text


def wanted_bytes(model: str) -> tuple[int, int]:
    """(bytes that Ray is asked for, the largest card's) at int8 on `lesson`."""
    layout = parse_layout(LAYOUTS[model])
    hardware = load_hardware("lesson")
    compiled = compile_model(PRESETS[model], hardware, layout, kinds="estimate")
    memory = [m.sram_bytes - m.free_bytes + PROCESS_BYTES for m in compiled.memories]
    size = hardware.chips_per_card
    return sum(memory), max(sum(memory[at : at + size]) for at in range(0, len(memory), size))


@pytest.mark.slow
@pytest.mark.parametrize("model", LAYOUTS)
def test_the_machines_hold_the_models_that_are_named(model: str) -> None:
    wanted, card = wanted_bytes(model)
    chips = parse_layout(LAYOUTS[model]).chips
    for path in FILES:
        said = rf"#   {model} +{chips} chips \({re.escape(LAYOUTS[model])}\) +([\d.]+) GB: (.*)"
        match = re.search(said, path.read_text(encoding="utf-8"))
        assert match is not None, path
        assert match[1] == f"{wanted / 1e9:.1f}"
        sizes = [
            kind["resources"].get("memory", int(0.85 * 64 * (1 << 30)))  # local: as found
            for name, kind in read(path)["available_node_types"].items()
            for _ in range((name != "worker") + kind.get("max_workers", 0))
        ]
        assert len(sizes) == 3
        fit = next(
            n for n in range(1, 4) if sum(size // card * card for size in sizes[:n]) > wanted
        )
        assert fit == {"llama-8b": 1, "llama-70b": 2}[model]
