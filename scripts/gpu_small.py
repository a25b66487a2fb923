"""Runs the kernels of every operation once at small sizes, for a checker of memory accesses: see gpu_run.sh.

scripts/gpu_small.py [PART PARTS]: every PARTS-th case from PART on, so that several processes compile at once.
"""

import sys

import torch

from louiskv.bench.op_cases import CASES
from louiskv.bench.ops import REFERENCE, runnable
from louiskv.bench.shapes import Inputs, Shape, Sizes

SIZES = (
    Sizes(Shape(num_kv_heads=3, group_size=1, dim=64, dtype=torch.float32), context=300, batch=1, budget=112),
    Sizes(Shape(num_kv_heads=2, group_size=3, dim=80, dtype=torch.float16), context=333, batch=2, budget=113),
    Sizes(Shape(num_kv_heads=2, group_size=4, dim=128, dtype=torch.bfloat16), context=1025, batch=1, budget=127),
)


@torch.inference_mode()
def main(part: int = 0, parts: int = 1) -> None:
    """Run them; ends with an error if there is no GPU, or no kernel ran."""
    device, number = torch.device("cuda"), 0
    for sizes in SIZES:
        for case in CASES[part::parts]:
            for impl in runnable(case, sizes, device, None):
                if impl != REFERENCE:
                    case.call(*case.make(Inputs(sizes, device)), impl=impl)
                    torch.cuda.synchronize()
                    number += 1
    print(f"{number} calls passed")
    if not number:
        sys.exit("No kernel ran.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
