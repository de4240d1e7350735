"""`rack.report`: one page that holds all it shows, and that a real browser shows."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused

from rack.commands.report import main
from rack.commands.sweep import main as sweep
from rack.sweeps.rows import read_rows

TINY = ["tiny", "--max-model-len", "64", "--prefill-chunk", "4", "--jobs", "1"]
GRID = ["--grid", "layout=1x1,2x1,9x9", "--grid", "link.gb_per_s=12.5,25", "--grid", "context=1,16"]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "rows.jsonl"
    assert sweep([*TINY, *GRID, "-o", str(path)]) == 0
    return path


class Seen(html.parser.HTMLParser):
    """What a page has: elements, their addresses, the texts of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.cells: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag in ("td", "th"):
            self.cells.append("")
            self.in_cell = True

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")


def page(path: Path, *argv: str) -> str:
    output = path.with_suffix(".html")
    assert main([str(path), *argv, "-o", str(output)]) == 0
    return output.read_text(encoding="utf-8")


def test_the_page_has_every_row_and_needs_nothing_else(rows: Path) -> None:
    text = page(rows)
    seen = Seen(text)
    found = read_rows(str(rows))
    assert seen.elements.count("tr") == len(found) + 2  # two heads
    assert seen.elements.count("svg") == 3  # an axis each
    assert {"script", "img", "link", "iframe"}.isdisjoint(seen.elements)
    assert all(address.startswith("#") for address in seen.addresses)
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)", text)
    for row in found:
        if "error" in row:
            assert row["error"]["message"] in seen.cells
        else:
            assert f"{row['decode']['cycles']:,}" in seen.cells
    assert found[0]["hardware_digest"] in text
    assert found[0]["code"]["commit"] in text
    assert found[0]["weights"] in text  # that they are synthetic
    assert "12 points (plans), 8 of which fit" in text


def test_pictures_have_ids_of_their_own(rows: Path) -> None:
    seen = Seen(page(rows))
    figures = [name for name in seen.ids if name.endswith("figure_1")]
    assert figures == ["p0-figure_1", "p1-figure_1", "p2-figure_1"]
    assert {address[1:] for address in seen.addresses} <= set(seen.ids)


def test_the_same_rows_give_the_same_page(rows: Path) -> None:
    assert page(rows) == page(rows)


def test_pictures_that_are_asked_for(rows: Path) -> None:
    text = page(rows, "--plot", "context,decode.cycles,layout", "--title", "A <b> title")
    assert Seen(text).elements.count("svg") == 1
    assert "<h1>A &lt;b&gt; title</h1>" in text


def test_several_files_and_the_names_of_pages(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    one.write_bytes(b"".join(lines[:2]))
    two.write_bytes(b"".join(lines[-2:]))
    assert main([str(one), str(two)]) == 0
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert "<title>one.jsonl, two.jsonl</title>" in text
    assert "4 points (plans), 2 of which fit" in text
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'one.html'}: 4 points\n")


def test_only_points_that_do_not_fit(rows: Path, tmp_path: Path) -> None:
    path = tmp_path / "misfits.jsonl"
    path.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[-4:]))
    seen = Seen(page(path))
    assert seen.elements.count("svg") == 0
    assert seen.elements.count("tr") == 5


def test_markup_in_rows_is_text(rows: Path, tmp_path: Path) -> None:
    row = json.loads(rows.read_bytes().splitlines()[-1])
    row["error"]["message"] = row["point"]["layout"] = "<script>alert(1)</script>"
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert "script" not in Seen(page(path)).elements


@pytest.mark.parametrize(
    ("key", "value"),
    [("decode", "x"), ("code", {}), ("code", None), ("weights", [1]), ("notices", [[]])],
)
def test_rows_that_somebody_changed(rows: Path, tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "odd.jsonl"
    row = json.loads(rows.read_bytes().splitlines()[0])
    path.write_text(json.dumps({**row, key: value}) + "\n")
    assert Seen(page(path)).elements.count("tr") == 2


@pytest.mark.parametrize("rate", ["fast", None, [1], float("nan")])
def test_rates_that_are_no_numbers(
    rows: Path, tmp_path: Path, rate: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.jsonl"
    found = [json.loads(line) for line in rows.read_bytes().splitlines()[:2]]
    for row in found:
        row["decode"] |= {"tokens_per_second": rate, "cycles": 0}
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    assert main([str(path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: column tokens_per_second: wanted numbers to draw, got {rate!r}"
    )


def test_a_page_over_its_rows(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, link = rows.read_bytes(), tmp_path / "page.html"
    link.hardlink_to(rows)
    for output in (rows, f"{rows.parent}/./{rows.name}", link):
        said = refused(capsys, 2, main, str(rows), "-o", str(output))
        assert said == f"--output: wanted a file beside the rows, got {output}"
    assert rows.read_bytes() == before


def test_measurements(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    argv = ["--run", "bench", "--executor", "timing", "--decode-tokens", "2", "--repeats", "1"]
    assert sweep([*TINY, *argv, "--grid", "layout=1x1,2x1", "-o", str(path)]) == 0
    text = page(path)
    assert "2 points (measurements), 2 of which fit" in text
    assert "emulated tokens/s" in Seen(text).cells
    assert Seen(text).elements.count("svg") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "wanted rows to show, got none"),
        (b'{"key"', "wanted rows to show, got none"),
        (b"text\n", "line 1: wanted a row of rack.sweep, got 'text'"),
    ],
)
def test_what_is_no_file_of_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    assert said in refused(capsys, 1, main, str(path))
    assert not (tmp_path / "rows.html").exists()


def test_bad_usage(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        ([str(rows), "-o", str(rows)], f"--output: wanted a file beside the rows, got {rows}"),
        ([str(rows), "--plot", "x"], "plot: wanted X,Y or X,Y,COLOUR, got 'x'"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
    assert main([str(rows), "--plot", "layout,cycels", "-o", str(rows.with_suffix(".no"))]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "error: column cycels: wanted one of the rows', got none; near: decode.cycles"
    assert not rows.with_suffix(".no").exists()


def browser() -> str:
    """A browser of this computer, or the test is left out: `apt install chromium` gives one."""
    for name in BROWSERS:
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip("no Chromium here (apt install chromium)")


def shown(text: str, tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    return subprocess.run(
        [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", *argv,
            path.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip


MEASURE = (
    "<script>addEventListener('load', () => {"
    "const wide = e => Math.round(e.getBoundingClientRect().width);"
    "document.body.dataset.svgs = [...document.querySelectorAll('svg')].map(wide);"
    "document.body.dataset.rows = document.querySelectorAll('tbody tr').length;"
    "document.body.dataset.fetched = performance.getEntriesByType('resource').length;"
    "})</script>"
)


def test_a_real_browser_shows_it(rows: Path, tmp_path: Path) -> None:
    """Beside the page's own policy, which refuses all scripts, none of its content is refused."""
    text = page(rows)
    plain = shown(text, tmp_path, "--dump-dom")
    assert "CONSOLE" not in plain.stderr
    assert Seen(plain.stdout).elements.count("svg") == 3
    asked = text.replace("style-src", "script-src 'unsafe-inline'; style-src").replace(
        "</body>", f"{MEASURE}</body>"
    )
    dom = shown(asked, tmp_path, "--dump-dom", "--window-size=1200,900").stdout
    data: dict[str, Any] = dict(re.findall(r'data-(\w+)="([^"]*)"', dom))
    assert data["rows"] == "12"
    assert data["fetched"] == "0"
    assert all(500 < int(wide) <= 1200 for wide in data["svgs"].split(","))
