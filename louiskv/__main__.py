"""`python -m louiskv` is `louiskv`, as `torchrun -m louiskv` needs it."""

from louiskv.cli import main

if __name__ == "__main__":
    main()
