"""Compile every kernel in Triton for a GPU that is not here, in a process of its own: one that interprets cannot.

Prints, as one JSON object, for each kernel and way to compile it, its bytes of shared memory or what went wrong.
"""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import louiskv.ops
from louiskv.ops.triton_runtime import Kernel

OPS = Path(louiskv.ops.__file__).parent
MODULES = tuple(sorted(path.stem for path in OPS.glob("*_triton.py")))


def kernels(module: str) -> dict[str, Kernel]:
    """The kernels of a twin by their names."""
    return {
        name: found for name, found in vars(import_module(f"louiskv.ops.{module}")).items() if isinstance(found, Kernel)
    }


def source_of(kernel: Kernel, check: dict[str, Any], config: dict[str, int], dtype: str) -> Any:
    """What one way to compile a kernel gives to the compiler; pointers are aligned as torch's are."""
    function, signature, constants, attributes = kernel.function, {}, {}, {}
    known = {**check, **config}
    for number, parameter in enumerate(function.params):
        value = known[parameter.name]
        if isinstance(value, str) and value.startswith(("*", "i", "fp")) and not parameter.is_constexpr:
            signature[parameter.name] = value.replace("T", dtype)
            if not value.startswith("fp") and not parameter.do_not_specialize:
                attributes[number,] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "constexpr"
            constants[number,] = value
    return ASTSource(function, signature, constants, attributes)


def ways(dtypes: tuple[str, ...]) -> Iterator[tuple[str, Kernel, dict[str, Any], dict[str, int], str]]:
    """Every kernel by its first check in the dtypes it depends on; of several also by all checks and configurations."""
    for module in MODULES:
        for name, kernel in kernels(module).items():
            for number, check in enumerate(kernel.checks if len(dtypes) > 1 else kernel.checks[:1]):
                depends = any(isinstance(value, str) and "T" in value for value in check.values())
                for dtype in dtypes if depends and number == 0 else dtypes[:1]:
                    every = len(dtypes) > 1 and (number, dtype) == (0, dtypes[0])
                    for config in kernel.configs if every else kernel.configs[:1]:
                        yield f"{module}.{name} {number} {dtype} {config}", kernel, dict(check), dict(config), dtype


def compiled(kernel: Kernel, check: dict[str, Any], config: dict[str, int], dtype: str, arch: int) -> Any:
    """One kernel compiled one way."""
    options = {name: config[name] for name in ("num_warps", "num_stages")}
    return triton.compile(source_of(kernel, check, config, dtype), target=GPUTarget("cuda", arch, 32), options=options)


def main(arch: int, dtypes: tuple[str, ...]) -> None:
    """Compile all of them."""
    results: dict[str, Any] = {}
    for name, kernel, check, config, dtype in ways(dtypes):
        try:
            results[name] = compiled(kernel, check, config, dtype, arch).metadata.shared
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), tuple(sys.argv[2:]))
