"""A rank that runs `louiskv` with the arguments after its own; `python -m tests.cli.rank` under torchrun.

The first argument is the rank that alone asks for a model that is not there, -1 for none.
"""

import os
import sys

from louiskv.cli import main

if sys.argv[1] == os.environ["RANK"]:
    sys.argv += ["--model", "/nowhere/model"]
del sys.argv[1]
main()
