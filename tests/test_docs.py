"""What the documents and comments say of the code: rooms and what they import, paths, flags, words.

Run as a script, this file writes anew what follows from the code: the last column of the table in
docs/contributing.md, "May import" in each folder's __init__.py, and tests/slow.txt without tests
that are gone.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from conftest import defined_tests, slow_tests
from test_layers import FILES, PACKAGES, ROOT, ours, tree_of

from rack.commands.verbs import VERBS
from rack.machines.changes import plain_key
from rack.machines.profile import load_hardware
from rack.machines.profile_keys import KNOWN, REMOVED
from rack.serve.limits import load_limits

DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


# Rooms: docs/contributing.md has a table, and each folder's __init__.py says the same.

ROOMS = sorted({path.parent for path in FILES})


def room_of(module: str) -> str:
    """The folder that a module's file is in, with dots; a package is in itself."""
    package = ROOT.joinpath(*module.split("."), "__init__.py")
    return module if package.is_file() else module.rpartition(".")[0]


def imports_of(folder: Path) -> set[str]:
    """Rooms that a folder's own files import; to rack, other packages are one room each."""
    room = ".".join(folder.relative_to(ROOT).parts)
    found = {room_of(name) for path in folder.glob("*.py") for name in ours(path)} - {room}
    if room.startswith("rack"):
        outside = {name for name in found if not name.startswith("rack")}
        found = found - outside | {name.split(".")[0] + ".*" for name in outside}
    return found


@cache
def table() -> dict[str, set[str]]:
    """Room -> rooms that it may import, as docs/contributing.md has them."""
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    _, _, rows = text.partition(
        "| folder | what is in it | its files may import |\n|---|---|---|\n"
    )
    found: dict[str, set[str]] = {}
    for row in rows.split("\n\n")[0].splitlines():
        name, _, may = row.strip("|").split("|")
        rooms = [
            [room.rstrip("/").replace("/", ".") for room in re.findall(r"`([\w/*]+)`", cell)]
            for cell in (name, may)
        ]
        found[rooms[0][0]] = set(rooms[1])
    return found


def test_the_table_of_rooms_has_every_folder() -> None:
    assert set(table()) == {".".join(folder.relative_to(ROOT).parts) for folder in ROOMS}


@pytest.mark.parametrize("room", ROOMS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_a_room_imports_what_the_table_and_its_head_say(room: Path) -> None:
    name = ".".join(room.relative_to(ROOT).parts)
    imported = imports_of(room)
    assert imported == table()[name], f"docs/contributing.md, {name}"
    head = ast.get_docstring(tree_of(room / "__init__.py"))
    assert head, f"{name}/__init__.py: wanted a docstring, got none"
    (listed,) = re.findall(r"May import: ([\w\s.,*]+)\.$", head, re.MULTILINE) or [""]
    said = set() if listed == "nothing of ours" else set(re.split(r",\s+", listed))
    assert imported == said, f"{name}/__init__.py"


# Paths and module names: whatever is named is there.

FOLDERS = (*PACKAGES, "tests", "docs", "benchmarks", "examples", "clusters", "tools", ".ci")
SUFFIXES = {".py", ".pyi", ".c", ".h", ".md", ".toml", ".yaml", ".sh", ".mjs", ".txt", ""}
READ = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile", "MANIFEST.in")),
    *(ROOT / name for name in ("pyproject.toml", "setup.py", ".gitignore")),
    *(
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in SUFFIXES and path.is_file()
        if not {"models", "__pycache__", "node_modules"} & set(path.parts)
    ),
]
PATH = re.compile(
    r"(?<![\w./\\-])(?:chip|compiler|interconnect|rack|tests|docs|benchmarks|examples|clusters|tools"
    r"|decisions|\.ci)/[\w*/{},-]*(?:\.[\w*]+)*"
)
MODULE = re.compile(r"(?<![\w./\\-])(?:chip|compiler|interconnect|rack)(?:\.[a-z_]\w*)+")


def prose(path: Path) -> str:
    """A file's text; of Python code the comments and docstrings.

    A page of docs/how-to may name what its example makes, which is not there; a line says what.
    """
    text = path.read_text(encoding="utf-8")
    for made in re.findall(r"^The example makes (.*)\.$", text, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", made):
            assert not (ROOT / name).exists(), f"{path.name}: {name} is there"
            text = re.sub(rf"(?<![\w/]){re.escape(name)}", "", text)
    if path.suffix != ".py":
        return text
    strings = (
        node.value
        for statement in ast.walk(ast.parse(text))
        if isinstance(statement, ast.Expr) and isinstance(node := statement.value, ast.Constant)
        if isinstance(node.value, str)
    )
    return "\n".join([*strings, *re.findall(r"(?:^|\s)# .*", text)])


def names_a_file(name: str, beside: Path) -> bool:
    """Whether there is such a file, or a module without its suffix that has such a name."""
    if name.endswith(".so"):
        return True  # what a build makes
    name = f"docs/{name}" if name.startswith("decisions/") else name
    for folder in (ROOT, beside.parent):
        if any(
            match for form in (name, f"{name}.py", f"{name}-*.md") for match in folder.glob(form)
        ):
            return True
    stem, _, attribute = name.partition(".")
    module = ROOT / f"{stem}.py"
    return module.is_file() and re.search(rf"\b{attribute}\b", module.read_text()) is not None


def names_a_module(name: str) -> bool:
    """Whether it is a module, something that a module has, or a number of the machine."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:length])
        for file in (stem.with_suffix(".py"), stem.with_suffix(".pyi"), stem / "__init__.py"):
            if file.is_file() and length > 1:
                rest = parts[length:]
                return not rest or re.search(rf"\b{rest[0]}\b", file.read_text()) is not None
    return name in KNOWN or name in REMOVED


def test_what_is_named_is_there() -> None:
    missing: dict[str, list[str]] = {}
    for path in READ:
        text = prose(path)
        found = [name.rstrip(",-") for name in PATH.findall(text)]
        names = [name for name in found if not names_a_file(name, path)]
        named = [name for name in MODULE.findall(text) if plain_key(name) is None]
        names += [name for name in named if not names_a_module(name)]
        if names:
            missing[path.relative_to(ROOT).as_posix()] = names
    assert missing == {}


def test_links_lead_somewhere() -> None:
    dead: list[str] = []
    for path in DOCS:
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        inside = [target for target in targets if "://" not in target]
        dead += [f"{path.name}: {to}" for to in inside if not (path.parent / to).exists()]
    assert dead == []


# Commands: verbs that are shown take the flags that they are shown with.

COMMAND = re.compile(r"(?:python -m rack\.|lpu-rack )(\w+)((?:[^`\n|]|\\\n)*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


@cache
def flags_of(verb: str) -> set[str]:
    module = import_module(f"rack.commands.{verb}")
    return set(FLAG.findall(module.build_parser().format_help()))


def test_commands_have_the_flags_that_documents_show() -> None:
    shown = [
        (path.name, verb, flag)
        for path in DOCS
        for verb, rest in COMMAND.findall(path.read_text(encoding="utf-8"))
        for flag in FLAG.findall(rest)
        if verb in VERBS
    ]
    assert {verb for _, verb, _ in shown} == set(VERBS)
    assert [one for one in shown if one[2] not in flags_of(one[1])] == []


# Files: a profile, or limits, that are shown are taken.


def shown_profiles() -> list[tuple[str, str]]:
    """Page and text of every whole profile that a document shows."""
    return [
        (path.name, textwrap.dedent(block))
        for path in DOCS
        for block in re.findall(
            r"^ *```toml\n(.*?)```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        if "inherits = " in block
    ]


@pytest.mark.parametrize(("page", "text"), shown_profiles())
def test_profiles_that_documents_show_are_taken(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"{tomllib.loads(text)['name']}.toml"
    path.write_text(text, encoding="utf-8")
    assert load_hardware(path).name == path.stem, page


def test_two_documents_show_a_profile() -> None:
    pages = [page for page, _ in shown_profiles()]
    assert pages == ["add-a-machine.md", "profiles.md", "profiles.md"]


def test_the_limits_that_are_shown_are_taken(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "limits.toml").write_text(shown, encoding="utf-8")
    limits = load_limits(tmp_path / "limits.toml", {"alice"}, {"llama-3.1-8b-instant"})
    assert limits("alice", "llama-3.1-8b-instant")["tokens_per_minute"] == 12_000


# Words: docs/glossary.md has only those that are in use.


def test_the_glossary_has_words_that_are_in_use() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| ")]
    words = [word for row in rows for word in re.split(r",\s*", row[1].strip()) if word != "word"]
    assert len(words) > 60
    used = "\n".join(
        path.read_text(encoding="utf-8").lower().replace("_", " ")
        for path in READ
        if path.name != "glossary.md"
    )
    unused = [word for word in words if word.strip("`").lower().replace("_", " ") not in used]
    assert unused == []
    assert sorted(set(words)) == sorted(words)


# What `make quick` leaves out is there.


def known_tests() -> set[str]:
    return {test for path in (ROOT / "tests").glob("test_*.py") for test in defined_tests(path)}


def test_the_defined_tests_slow_txt_are_there() -> None:
    assert slow_tests() - known_tests() == set()
    assert len(slow_tests()) < len(known_tests()) / 3


# Writing anew.


def main() -> None:
    contributing = ROOT / "docs" / "contributing.md"
    text = contributing.read_text(encoding="utf-8")
    order = list(table())
    for folder in ROOMS:
        room = ".".join(folder.relative_to(ROOT).parts)
        imported = sorted(imports_of(folder), key=lambda name: order.index(name.removesuffix(".*")))
        shown = [f"`{name}/`".replace(".*/", "/*").replace(".", "/") for name in imported]
        row = rf"^(\| `{room.replace('.', '/')}/` \|[^|]*\|).*$"
        text = re.sub(
            row, rf"\1 {', '.join(shown) or 'nothing of ours'} |", text, flags=re.MULTILINE
        )
        said = textwrap.fill(f"May import: {', '.join(imported) or 'nothing of ours'}.", 100)
        head = folder / "__init__.py"
        old = head.read_text(encoding="utf-8")
        head.write_text(re.sub(r"May import: [\w\s.,*]+?\.(?=\n)", said, old, count=1))
    contributing.write_text(text, encoding="utf-8")
    slow = ROOT / "tests" / "slow.txt"
    lines = slow.read_text(encoding="utf-8").splitlines(keepends=True)
    known = known_tests()
    slow.write_text("".join(one for one in lines if one[0] == "#" or one.split()[0] in known))


if __name__ == "__main__":
    main()
