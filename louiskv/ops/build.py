"""Compile the kernels ahead of their first use: `python -m louiskv.ops.build`, with `--cuda` those for GPUs too."""

import sys
from collections.abc import Sequence

from louiskv.ops.compiling import BuildError, Library
from louiskv.ops.native import cpu_library
from louiskv.ops.nvcc import library_ahead


def main(arguments: Sequence[str] = ()) -> int:
    """Compile what can be compiled here, and print what and where; 1 if that fails."""
    if not set(arguments) <= {"--cuda"}:
        print("usage: python -m louiskv.ops.build [--cuda]", file=sys.stderr)
        return 2
    libraries = [cpu_library(), *([library_ahead()] if arguments else [])]
    return max([_build(library) for library in libraries])


def _build(library: Library) -> int:
    try:
        path = library.path()
        there = path.is_file()
        library.build(tell=False)
    except BuildError as error:
        print(f"{library.name} cannot be built: {error}", file=sys.stderr)
        return 1
    print(f"{library.name}: {path} ({'was there' if there else 'built'})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
