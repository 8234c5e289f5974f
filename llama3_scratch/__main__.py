"""The commands: python -m llama3_scratch fetch | run."""

import argparse
import sys
from pathlib import Path

from .params import CheckpointError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llama3_scratch", description="Llama 3 from scratch.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetch_parser = commands.add_parser("fetch", help="get the small real model and Llama 3's vocabulary")
    fetch_parser.add_argument("names", nargs="*", help="what to get; without a name, all")
    run_parser = commands.add_parser("run", help="execute notebooks and write them as HTML")
    run_parser.add_argument("notebooks", nargs="*", type=Path, help="files; without any, all in notebooks/")
    run_parser.add_argument("--store", action="store_true", help="keep the outputs in the notebooks themselves")
    run_parser.add_argument("--build", type=Path, default=Path("build"), help="folder for the HTML (default: build)")
    options = parser.parse_args(arguments)
    try:
        return _fetch(options.names) if options.command == "fetch" else _run(options)
    except CheckpointError as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _fetch(names: list[str]) -> int:
    from . import fetch

    unknown = set(names) - set(fetch.SOURCES)
    if unknown:
        raise CheckpointError(f"nothing to fetch by the name {sorted(unknown)[0]!r}; known: {', '.join(fetch.SOURCES)}")
    for name in names or fetch.SOURCES:
        print(f"{name}: {fetch.fetch(name)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from . import notebooks

    paths = options.notebooks or sorted(Path("notebooks").glob("*.ipynb"))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise CheckpointError(
            f"{missing[0] if missing else 'notebooks/'}: no notebook there; run this from the repository"
        )
    return 0 if notebooks.execute(paths, options.build, options.store) else 1


if __name__ == "__main__":
    sys.exit(main())
