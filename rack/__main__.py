"""`lpu-rack VERB` and `python -m rack VERB`: as `python -m rack.VERB`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

from rack.commands.verbs import VERBS, program
from rack.system.shell import put, verb


def build_parser() -> ArgumentParser:
    """Return the command line without a verb: its help lists them."""
    wide = max(map(len, VERBS))
    lines = [f"  {name:<{wide}}  {purpose}" for name, purpose in VERBS.items()]
    return ArgumentParser(
        prog=program(),
        usage="%(prog)s VERB ...",
        description="A cycle-exact, bit-exact emulator of Groq-style LPU racks.",
        epilog="\n".join(["verbs:", *lines, "", f"{program()} VERB --help shows a verb's flags."]),
        formatter_class=RawDescriptionHelpFormatter,
    )


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the first word names; its exit code, 2 where there is no such verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if words[:1] in (["-h"], ["--help"]):
        put(parser.format_help(), end="")
        return 0
    known = f"known: {', '.join(VERBS)}"
    if not words:
        parser.error(f"wanted a verb, got none; {known}")
    if words[0] not in VERBS:
        parser.error(f"wanted a verb, got {words[0]!r:.100}; {known}")
    code: int = import_module(f"rack.commands.{words[0]}").main(words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
