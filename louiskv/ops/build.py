"""Compile the kernels ahead of their first use: `python -m louiskv.ops.build`."""

import sys

from louiskv.ops.compiling import BuildError
from louiskv.ops.native import cpu_library


def main() -> int:
    """Compile what can be compiled here, and print what and where; 1 if that fails."""
    library = cpu_library()
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
    sys.exit(main())
