"""Progress: plain lines where nobody watches, bars on a terminal, never on standard output."""

from __future__ import annotations

import pytest

from rack.system.progress import StartProgress, say, start_progress


def test_plain_lines_at_the_start_and_the_end_of_a_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with start_progress() as progress:
        for done in range(4):
            progress.report("chips loaded", done, 3)
        progress.report("racks placed", 1, 1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "chips loaded: 0/3\nchips loaded: 3/3\nracks placed: 1/1\n"


def test_bars_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes it for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with StartProgress() as progress:
        assert progress._bar is not None
        progress.report("chips loaded", 0, 3)
        progress.report("chips loaded", 3, 3)
        (task,) = progress._bar.tasks
        assert (task.description, task.completed, task.total) == ("chips loaded", 3, 3)
    assert progress._bar is None
    out, err = capsys.readouterr()
    assert out == ""
    assert "chips loaded" in err
    assert "3/3" in err
    progress.stop()  # a second time does nothing


def test_notices_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("synthetic")
    assert capsys.readouterr() == ("", "synthetic\n")
