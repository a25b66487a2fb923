"""The command `louiskv`; needs the extra: pip install 'louiskv[cli]'."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command `louiskv`; without typer and rich, say how to install them."""
    missing = [package for package in ("typer", "rich") if find_spec(package) is None]
    if missing:
        sys.exit(f"error: the command needs {' and '.join(missing)}: pip install 'louiskv[cli]'")
    try:
        from louiskv.cli.commands import app
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="louiskv")
