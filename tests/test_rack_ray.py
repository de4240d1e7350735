"""Chips as Ray actors: the trained model's known tokens, placement, and death of an actor."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chip.errors import ScheduleViolation
from compiler.model.frontend import resolve_model
from rack.commands.generate import main
from rack.errors import ChipFailedError, RackError
from rack.run.config import RunConfig
from rack.run.remote import RemoteRack
from rack.run.session import Prepared, Session, prepare
from rack.text.sampler import SamplingParams

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One local Ray for the module: starting it takes longer than the tests."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    yield
    ray.shutdown()


def known(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    return json.loads((folder / "greedy.json").read_text())[:9]


def prepared(model: Path | str, layout: str, **extra: object) -> Prepared:
    return prepare(RunConfig(model=str(model), layout=layout, transport="ray", **extra))


@pytest.mark.parametrize("layout", ["5x1", "2x3+1", "1x4+2"])
def test_actors_reproduce_the_known_tokens(stories260k: Path, layout: str) -> None:
    with Session(prepared(stories260k, layout, dtype="fp16")) as session:
        for entry in known(stories260k):
            prompt = entry["prompt_token_ids"]
            count = len(entry["token_ids"]) - len(prompt)
            params = SamplingParams(max_tokens=count, ignore_eos=True)
            completion = session.engine.generate(prompt, params).run()
            assert prompt + completion.token_ids == entry["token_ids"], entry["prompt"]


def test_generate_runs_on_actors_and_gives_the_local_hashes(
    stories260k: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [str(stories260k), "--prompt", "Lily", "--max-tokens", "8", "--json"]
    out = {}
    for transport in ("ray", "local"):
        assert main([*base, "--transport", transport, "--layout", "2x2+1"]) == 0
        out[transport] = json.loads(capsys.readouterr().out)
    for key in ("token_ids", "schedule_hash", "data_hash"):
        assert out["ray"][key] == out["local"][key]
    assert out["ray"]["emulated"] == out["local"]["emulated"]
    assert out["ray"]["transport"] == "ray"


def test_cards_share_a_bundle_and_racks_a_placement_group() -> None:
    with Session(prepared("tiny", "2x2+1")):
        (group,) = [
            table
            for table in ray.util.placement_group_table().values()
            if table["state"] == "CREATED"
        ]
        assert len(group["bundles"]) == 3  # five chips, two a card
        assert group["strategy"] == "PACK"
        memory = [bundle["memory"] for _, bundle in sorted(group["bundles"].items())]
        assert all(size > 2 * (100 << 20) for size in memory[:2])


def test_a_killed_actor_is_named() -> None:
    with Session(prepared("tiny", "2x2+1", step_timeout_s=30.0)) as session:
        session.engine.generate([1, 2, 3], SamplingParams(max_tokens=1)).run()
        actors = [
            process
            for process in psutil.Process().children(recursive=True)
            if any("ChipActor" in part for part in process.cmdline())
        ]
        assert len(actors) == 5
        os.kill(actors[0].pid, signal.SIGKILL)
        with pytest.raises(ChipFailedError, match=r"chip \d, step .*: its process ended"):
            session.engine.generate([1, 2, 3], SamplingParams(max_tokens=1)).run()


def test_killed_and_stopped_actors_are_replaced() -> None:
    """By spares, with nothing but the replay to show for it."""
    prompt, params = [256, 72, 105, 33, 33], SamplingParams(max_tokens=8, ignore_eos=True)
    ready = prepared("tiny", "2x2+1", step_timeout_s=2.0, spares=3)
    with Session(ready) as session:
        rack = session.rack
        assert isinstance(rack, RemoteRack)
        wanted = session.engine.generate(prompt, params).run()
        for chip, how in ((2, signal.SIGKILL), (0, signal.SIGSTOP), (2, signal.SIGKILL)):
            completion = session.engine.generate(prompt, params)
            events = iter(completion)
            next(events)
            os.kill(rack.members.at(chip).pid, how)
            assert len(list(events)) == 7
            assert completion.token_ids == wanted.token_ids
            assert completion.decode_cycles == wanted.decode_cycles
            assert completion.data_hash == wanted.data_hash
            assert [one.chips for one in completion.recoveries] == [(chip,)]
            assert completion.recoveries[0].replayed_cycles > 0
        assert rack.spares == 0


def test_a_slowed_link_is_refused_by_the_actor() -> None:
    from rack.run.remote import start_ray_rack

    ready = prepared("tiny", "2x1")
    links = ready.compiled.network.links
    link = next(link for link in links if (link.src, link.dst) == (0, 1))
    rack = start_ray_rack(
        ready.compiled, ready.model.weights_ref, ready.hardware,
        step_timeout_s=20.0, slots={link.id: 2 * link.slot_cycles},
    )  # fmt: skip
    try:
        rack.reset()
        with pytest.raises(
            ScheduleViolation, match=r"last vector's arrival|first vector's"
        ) as caught:
            rack.run_step("decode/256", [0], [1])
        assert (caught.value.chip, caught.value.link) == (1, link.name)
    finally:
        rack.close()


def test_a_layout_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rack.run.remote.PROCESS_BYTES", 1 << 40)
    monkeypatch.setattr("rack.run.cluster.PLACE_TIMEOUT_S", 0.5)
    with pytest.raises(RackError, match="rack 0: Ray found no room within 0 s: the layout wants"):
        Session(prepared("tiny", "1x1"))
    assert resolve_model("tiny").config.name == "tiny"
