"""The kernels in CUDA: what the compiler says of them, how they are bound, and why they cannot run."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from louiskv.errors import ImplementationError
from louiskv.ops import build, nvcc, refusals
from louiskv.ops.compiling import SOURCES, BuildError, Unit

UNITS = nvcc.library_ahead().units
# Of a kernel: more would leave a multiprocessor with fewer threads than it needs to hide how far the memory is.
MOST_REGISTERS = {
    "decide": 48,
    "select_units": 64,
    "assign_slots": 64,
    "list_candidates": 64,
    "best_tokens": 64,
    "count_rest": 64,
    "copy_tokens": 48,
}
MOST_SHARED_BYTES = 24 * 1024
# What a launcher's parameters are in C.
IN_C = {ctypes.c_int: "int", ctypes.c_int64: "int64_t", ctypes.c_float: "float", ctypes.c_void_p: "*"}


@pytest.fixture
def untried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library had not been asked for in this process, nor built for this user."""
    monkeypatch.setenv("LOUISKV_CACHE", str(tmp_path))
    monkeypatch.setattr(nvcc._Loaded, "tried", False)
    monkeypatch.setattr(nvcc._Loaded, "reason", None)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one GPU, of compute capability 9.0."""
    for name, answer in (("is_available", True), ("device_count", 1), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))


def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda _name: None)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.source)
def test_it_compiles_for_all_without_warnings_and_spills(unit: Unit, tmp_path: Path) -> None:
    library = nvcc.library_ahead()
    command = [library.compiler(), "-c", str(SOURCES / unit.source), "-o", str(tmp_path / "object.o"), *library.flags]
    strict = ["-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", "-Xptxas=-v", f"-I{SOURCES}"]
    done = subprocess.run([*command, *unit.flags, *strict], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # One kernel after the other: its name and architecture, then its stack and spills, then its registers.
    kernels = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
        done.stderr,
        re.DOTALL,
    )
    for architecture in nvcc.AHEAD:
        assert any(found == "{}{}".format(*architecture) for _, found, *_ in kernels)
    for name, architecture, *counted in kernels:
        stack, stores, loads, registers, shared = (int(each or 0) for each in counted)
        kernel = next(each for each in MOST_REGISTERS if each in name)
        assert stack == stores == loads == 0, f"{name} spills on sm_{architecture}"
        assert registers <= MOST_REGISTERS[kernel] and shared <= MOST_SHARED_BYTES, f"{name} on sm_{architecture}"


def test_all_sources_are_compiled() -> None:
    assert {unit.source for unit in UNITS} == {path.name for path in SOURCES.glob("*.cu")}


@pytest.mark.parametrize("name", nvcc.LAUNCHERS)
def test_launchers_take_what_the_sources_say(name: str) -> None:
    text = "".join((SOURCES / unit.source).read_text() for unit in UNITS)
    found = re.search(rf"LOUISKV_EXPORT int louiskv_{name}\((.*?)\)", text, re.DOTALL)
    assert found is not None
    declared = ["*" if "*" in each else each.split()[0] for each in found[1].split(",")]
    assert declared == [IN_C[each] for each in (*nvcc.LAUNCHERS[name], ctypes.c_int, ctypes.c_void_p)]


def test_it_is_built_ahead_of_time_without_a_gpu_and_errors_are_told(
    untried: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those in C++ are built by another test.
    monkeypatch.setattr(build, "cpu_library", nvcc.library_ahead)
    assert build.main(["--cuda"]) == 0
    path = nvcc.library_ahead().path()
    assert capsys.readouterr().out == f"louiskv_cuda: {path} (built)\nlouiskv_cuda: {path} (was there)\n"
    assert build.main(["--gpu"]) == 2 and "usage" in capsys.readouterr().err
    library = nvcc.open_library(path)
    error = library.louiskv_ready(1000)
    assert error
    with pytest.raises(ImplementationError, match=rf"it cannot: .*CUDA.*\(CUDA error {error}\)|invalid device ordinal"):
        nvcc.check(library, error, "it cannot")
    # A launcher of nothing has nothing to do; one of something says what is wrong.
    nothing = [0] * len(nvcc.LAUNCHERS["select_units"])
    assert library.louiskv_select_units(*nothing, 1000, None) == 0
    nothing[-2:] = [1, 1]
    assert library.louiskv_select_units(*nothing, 1000, None) == error
    # What is there is found without a compiler.
    no_nvcc(monkeypatch)
    assert nvcc._built([(9, 0)]) == nvcc._built([(8, 9), (12, 1)]) == path
    with pytest.raises(BuildError, match="no CUDA compiler"):
        nvcc._built([(7, 5)])


def test_it_is_built_for_the_gpus_that_there_are(untried: None, hopper: None, tmp_path: Path) -> None:
    reason = nvcc.why_not()
    made = nvcc.cuda_library([(9, 0)]).path()
    assert os.listdir(tmp_path / "kernels") == [made.name]
    # Where there is no GPU, it is loaded but not ready.
    assert reason is None or "kernels cannot be loaded: CUDA driver version is insufficient" in reason


def test_without_nvcc_it_says_what_to_do(untried: None, hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    no_nvcc(monkeypatch)
    reason = "no CUDA compiler: set CUDA_HOME or put nvcc on PATH"
    assert nvcc.why_not() == reason
    with pytest.raises(ImplementationError, match=reason):
        nvcc.launch("select_units", torch.device("cuda", 0))
    monkeypatch.setenv("CUDACXX", "stone")
    with pytest.raises(BuildError, match="CUDACXX=stone is not there: set CUDA_HOME or put nvcc on PATH"):
        nvcc.cuda_library([(9, 0)]).compiler()


def test_cuda_home_goes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDACXX", raising=False)
    (tmp_path / "bin").mkdir()
    compiler = tmp_path / "bin" / "nvcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert nvcc.cuda_library([(9, 0)]).compiler() == str(compiler)


def test_a_gpu_that_nvcc_does_not_know_is_an_error_that_says_so(untried: None) -> None:
    with pytest.raises(BuildError, match="compute_13"):
        nvcc._built([(1, 3)])


def test_devices_and_dtypes_that_there_are_no_kernels_for() -> None:
    assert refusals.refuses_cuda(torch.empty(0)) == "it runs on CUDA, not on cpu"
    assert refusals.refuses_cuda(torch.empty(0, device="meta")) == "it runs on CUDA, not on meta"
