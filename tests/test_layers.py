"""Imports go one way: between packages, between rack's wings, and round no circle.

Counted is every import statement, wherever it stands: in a function, or under TYPE_CHECKING. An
import of a.b also runs a/__init__.py, which is not counted. The wings' table is in
docs/architecture.md.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("chip", "interconnect", "compiler", "rack")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

COMPILER_MAY_IMPORT = (  # what a chip is, does and refuses; not how one runs or computes
    *("chip.spec", "chip.floorplan", "chip.sram", "chip.errors", "chip.ops.", "chip.isa."),
    *("chip.kernels.quant", "chip.kernels.packed", "chip.kernels.synthetic", "chip.kernels.vmath"),
    *("interconnect.spec", "interconnect.topology", "interconnect.errors"),
    "interconnect.clock",
    *("chip.machine.bulk", "chip.machine.check", "chip.machine.collect", "chip.machine.law"),
)
VERIFIER = (
    *("compiler.verify.verifier", "compiler.verify.accesses", "compiler.verify.clock"),
    *("compiler.verify.memory", "compiler.verify.sources", "compiler.verify.features"),
    *("compiler.verify.rows", "compiler.verify.pairs"),
)
VERIFIER_MAY_IMPORT = {
    *("compiler.errors", "compiler.ir", "compiler.model.architecture", "compiler.model.config"),
    *VERIFIER,
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file, with the names taken from it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import; write it out"
            assert node.module is not None
            folder = ROOT / node.module.replace(".", "/")
            modules = [a.name for a in node.names if (folder / f"{a.name}.py").is_file()]
            yield from (f"{node.module}.{name}" for name in modules)
            if len(modules) < len(node.names):  # the package itself, not only modules of it
                yield node.module


def ours(path: Path) -> set[str]:
    found = {name for name in imports(path) if name.split(".")[0] in PACKAGES}
    return {name for name in found if (ROOT / (name.replace(".", "/") + ".py")).is_file()} | {
        name for name in found if (ROOT / name.replace(".", "/")).is_dir() and "." in name
    }


def importers(*packages: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name.split(".")[0] in packages for name in imports(path))
    )


def test_the_walk_sees_the_packages() -> None:
    assert {module_of(path).split(".")[0] for path in FILES} == set(PACKAGES)
    assert "chip.ops.cost" in ours(ROOT / "compiler" / "schedule" / "scheduler.py")
    assert "chip.kernels" in ours(ROOT / "rack" / "run" / "job.py")


@pytest.mark.parametrize("package", ["chip", "interconnect"])
def test_the_lowest_packages_import_nothing_of_ours(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        outside = {name for name in ours(path) if name.split(".")[0] != package}
        assert not outside, f"{module_of(path)} imports {sorted(outside)}"


def test_the_compiler_imports_specs_and_instructions_only() -> None:
    for path in (ROOT / "compiler").rglob("*.py"):
        below = {name for name in ours(path) if name.split(".")[0] != "compiler"}
        wrong = {name for name in below if not f"{name}.".startswith(COMPILER_MAY_IMPORT)}
        assert not wrong, f"{module_of(path)} imports {sorted(wrong)}"


def test_the_verifier_imports_none_of_the_passes() -> None:
    for module in VERIFIER:
        path = ROOT / (module.replace(".", "/") + ".py")
        wrong = {n for n in ours(path) if n.startswith("compiler")} - VERIFIER_MAY_IMPORT
        assert not wrong, f"{module} imports {sorted(wrong)}"
    plain = ROOT / "compiler" / "ir.py"
    assert ours(plain) == {"chip.ops.program"}, "compiler.ir is data only"
    functions = [n.name for n in tree_of(plain).body if isinstance(n, ast.FunctionDef)]
    assert functions == ["_addresses"]


PLACES = {
    "ray": {"rack/run/actor.py", "rack/run/cluster.py", "rack/run/membership.py"},
    "zmq": {"interconnect/zmq_transport.py"},
    "safetensors": {"compiler/model/weights.py"},
    "llguidance": {"rack/text/constrain.py"},
}
"""Library -> the only files that import it."""


@pytest.mark.parametrize("package", PLACES)
def test_a_library_stays_in_its_place(package: str) -> None:
    assert set(importers(package)) == PLACES[package]


def test_the_web_framework_stays_in_the_server() -> None:
    for file in importers("fastapi", "starlette", "uvicorn"):
        assert file.startswith("rack/serve/"), file


def wing_of(module: str) -> str:
    """The part of rack that a module is in: a folder, `errors`, or `VERB` for the entries."""
    parts = module.split(".")
    verb = len(parts) == 2 and (ROOT / "rack" / "commands" / f"{parts[1]}.py").is_file()
    return "VERB" if verb or parts[-1] == "__main__" else parts[1]


def wings() -> dict[str, set[str]]:
    """Wing -> wings that it imports, as docs/architecture.md has them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| wing of `rack/` | holds | imports of `rack` |\n|---|---|---|\n")
    rows = [row.strip("|").split("|") for row in table.split("\n\n")[0].splitlines()]
    return {
        re.findall(r"`(\w+)", name)[0]: set(re.findall(r"`(\w+)", found)) for name, _, found in rows
    }


def test_the_wings_of_rack_import_what_the_table_says() -> None:
    seen: dict[str, set[str]] = {wing: set() for wing in wings()}
    for path in (ROOT / "rack").rglob("*.py"):
        module = module_of(path)
        if path.name == "__init__.py":
            continue
        for name in ours(path):
            if name.startswith("rack.") and (wing := wing_of(name)) != wing_of(module):
                seen[wing_of(module)].add(wing)
    assert seen == wings()
    order = list(seen)  # each row only names rows above it
    for place, wing in enumerate(order):
        assert seen[wing] <= set(order[:place]), wing


def circles() -> set[frozenset[str]]:
    """Every greatest set of modules that import each other round about."""
    graph = {module_of(path): ours(path) - {module_of(path)} for path in FILES}
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set[str](), [start]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        reach[start] = seen
    return {
        frozenset(other for other in reach[module] if module in reach.get(other, ()))
        for module in graph
        if module in reach[module]
    }


def test_imports_go_round_no_circle() -> None:
    found = [sorted(one) for one in circles()]
    assert not found, f"these import each other round about: {found}"


def test_modules_are_imported_by_statements() -> None:
    """But for the verb that the command line names, and extensions that may not be built."""
    by_name = {
        str(path.relative_to(ROOT))
        for path in FILES
        if {"importlib", "importlib.import_module"} & {*imports(path)}
        and "import_module" in path.read_text(encoding="utf-8")
    }
    assert by_name == {"rack/__main__.py", "rack/run/native.py", "chip/kernels/extension.py"}


def test_no_star_imports() -> None:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), module_of(path)


@pytest.mark.parametrize(
    ("room", "may"),
    [
        ("chip.isa", {"chip.errors", "chip.floorplan", "chip.spec"}),
        ("chip.encoding", {"chip.floorplan", "chip.isa", "chip.spec"}),
        (
            "chip.machine",
            {"chip.errors", "chip.floorplan", "chip.isa", "chip.kernels", "chip.spec"},
        ),
    ],
)
def test_instructions_know_nothing_of_their_bytes_or_of_the_machine(
    room: str, may: set[str]
) -> None:  # fmt: skip
    files = [path for path in FILES if module_of(path).startswith(f"{room}.")]
    assert len(files) > 2
    for path in files:
        rooms = {".".join(name.split(".")[:2]) for name in ours(path)}
        wrong = rooms - may - {room, "chip.errors", "chip.floorplan", "chip.spec"}
        assert not wrong, f"{module_of(path)} imports {sorted(wrong)}"


OUTSIDE = sorted(
    path for folder in ("benchmarks", "examples") for path in (ROOT / folder).glob("*.py")
)


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.stem)
def test_what_benchmarks_and_examples_import_is_there(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                there = hasattr(module, alias.name) or importlib.util.find_spec(
                    f"{node.module}.{alias.name}"
                )
                assert there, f"{path.name}: {node.module} has no {alias.name}"
