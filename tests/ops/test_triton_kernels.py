"""All kernels in Triton: they compile for GPUs that are not here, and what launches them never waits for one."""

import ast
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from louiskv.ops import OPS
from louiskv.ops.triton_runtime import Kernel, bucket, strides_of
from tests.ops.compile_triton import MODULES, kernels
from tests.ops.compile_triton import OPS as FOLDER

# Bytes of shared memory of one block on an A100.
SHARED = 163 * 1024
TREES = {module: ast.parse((FOLDER / f"{module}.py").read_text()) for module in MODULES}
# What waits for the device, or copies what it holds to the host.
WAITING = {"item", "tolist", "nonzero", "cpu", "numpy", "synchronize", "unique", "masked_select", "argwhere"}


@pytest.mark.parametrize(("arch", "dtypes"), [(80, ("bf16",)), (90, ("bf16", "fp16", "fp32")), (100, ("bf16",))])
def test_every_kernel_compiles(arch: int, dtypes: tuple[str, ...]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.compile_triton", str(arch), *dtypes]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)
    assert {name.split()[0] for name in results} == {
        f"{module}.{name}" for module in MODULES for name in kernels(module)
    }
    assert [each for each in results.items() if not isinstance(each[1], int) or each[1] > SHARED] == []


def is_jit(node: ast.expr) -> bool:
    return ast.unparse(node).startswith("triton.jit")


def launches(tree: ast.Module) -> list[tuple[str, set[str]]]:
    """What is called as `name[grid](...)`: the name, and the arguments given by name."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)]
    return [(ast.unparse(call.func).split("[")[0], {each.arg for each in call.keywords if each.arg}) for call in calls]


@pytest.mark.parametrize("module", MODULES)
def test_what_is_launched_is_declared_as_a_kernel_and_so_compiled_here(module: str) -> None:
    declared = kernels(module)
    assert {name for name, _ in launches(TREES[module])} == set(declared)
    for name, by_name in launches(TREES[module]):
        assert by_name >= set(declared[name].key), name
    for kernel in declared.values():
        assert kernel.checks
        for check in kernel.checks:
            assert set(check) | set(kernel.configs[0]) == {*kernel.function.arg_names, "num_warps", "num_stages"}
        assert all(set(config) == set(kernel.configs[0]) for config in kernel.configs)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_waits_for_the_device(module: str) -> None:
    functions = [node for node in TREES[module].body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        if any(is_jit(each) for each in function.decorator_list):
            continue
        tensors = {
            each.arg for each in function.args.args if each.annotation and "Tensor" in ast.unparse(each.annotation)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in WAITING, ast.unparse(node)
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("int", "bool", "float")
            ):
                assert not tensors & {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}, ast.unparse(
                    node
                )
            if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
                calls = [each.func for each in ast.walk(node.test) if isinstance(each, ast.Call)]
                names = {each.attr for each in calls if isinstance(each, ast.Attribute)}
                assert not names & {"any", "all", "max", "min", "sum"}, ast.unparse(node.test)


# Of what several twins are made.
PARTS = {"kmeans_small_triton", "points_triton"}


def test_every_twin_has_an_operation() -> None:
    named = {name for name, candidates in OPS.items() if any(each.name == "triton" for each in candidates)}
    public = {
        node.name
        for module, tree in TREES.items()
        if module not in PARTS
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert named == public


def test_in_the_interpreter_it_runs_only_when_it_is_named() -> None:
    like = torch.zeros(1)
    for candidates in OPS.values():
        for each in candidates:
            if each.name == "triton" and not torch.cuda.is_available():
                assert each.refusal(like) is None
                assert each.declines(like) == "on cpu it runs only when it is named"


def test_a_kernel_is_tuned_once_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    class Launched:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> "Launched":
            return self

        def __call__(self, *args: object, **kwargs: object) -> None:
            ran.append((self.name, kwargs))

        @property
        def best_config(self) -> SimpleNamespace:
            return SimpleNamespace(all_kwargs=lambda: {"block": 2, "num_warps": 8})

    capturing = [False]
    monkeypatch.setattr("louiskv.ops.triton_runtime.INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    kernel = Kernel(Launched("first"), (), ({"block": 1}, {"block": 2}), ("dim",))
    monkeypatch.setattr(kernel, "_autotuner", lambda: Launched("tuned"))
    kernel[1,](torch.zeros(1), dim=64)
    capturing[0] = True
    kernel[1,](torch.ones(1), dim=64)
    kernel[1,](torch.zeros(1), dim=128)
    kernel[1,](torch.zeros(1, dtype=torch.float16), dim=64)
    launched = [(name, {key: kwargs[key] for key in ("dim", "block") if key in kwargs}) for name, kwargs in ran]
    first = [("first", {"dim": dim, "block": block}) for dim, block in ((64, 2), (128, 1), (64, 1))]
    assert launched == [("tuned", {"dim": 64}), *first]
    assert ran[1][1]["num_warps"] == 8


def test_sizes_share_a_bucket_and_strides_of_one_entry_are_none() -> None:
    assert [bucket(size) for size in (0, 1, 2, 3, 4, 5, 1000)] == [1, 1, 2, 4, 4, 8, 1024]
    assert strides_of(torch.zeros(1, 5, 3), 0, 1) == (0, 3)
    assert strides_of(None, 0, 2) == (0, 0)
