"""`python -m louiskv.cli` is `louiskv`."""

from louiskv.cli import main

if __name__ == "__main__":
    main()
