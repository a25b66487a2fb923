"""The command `louiskv`; needs the extra: pip install 'louiskv[cli]'."""

import sys


def main() -> None:
    """Run the command `louiskv`; without typer and rich, say how to install them."""
    try:
        from louiskv.cli.commands import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"error: the command needs the package {error.name}: pip install 'louiskv[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="louiskv")
