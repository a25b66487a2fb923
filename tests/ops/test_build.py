"""The builder of kernels: what names a library, where it cannot be built, and building it twice at once."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from louiskv import ImplementationError
from louiskv.ops import build, dispatch, native, refusals
from louiskv.ops.compiling import SOURCES, BuildError, Library, Unit
from louiskv.ops.turning import query_cosines
from tests.ops.implementations import on_each_instruction_set


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("LOUISKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def small(tmp_path: Path) -> Library:
    """A library of one function."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    compilers = native.cpu_library().compilers
    return Library("small", "C++", compilers, "CXX", (Unit("one.cpp"),), ("-fPIC",), sources=tmp_path / "sources")


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library had not been asked for in this process."""
    monkeypatch.setattr(native._Loaded, "tried", False)
    monkeypatch.setattr(native._Loaded, "reason", None)
    monkeypatch.setattr(dispatch, "_FOUND", {})


def test_the_name_follows_sources_flags_and_units(small: Library) -> None:
    first = small.path()
    assert first == small.path() and first.name.startswith("small-") and first.suffix == ".so"
    changed = {
        replace(small, flags=("-fPIC", "-O1")).path(),
        replace(small, units=(Unit("one.cpp", ("-DTWO",)),)).path(),
        replace(small, link_flags=("-lm",)).path(),
    }
    (small.sources / "header.h").write_text("// read by nothing\n")
    changed.add(small.path())
    assert len(changed) == 4 and first not in changed


def test_it_is_built_once_and_said_once(small: Library, capsys: pytest.CaptureFixture[str], empty_cache: Path) -> None:
    path = small.build()
    said = capsys.readouterr().err
    assert path.is_file() and said.count("\n") == 1 and str(empty_cache) in said
    before = path.stat().st_mtime_ns
    assert small.build() == path and path.stat().st_mtime_ns == before
    assert capsys.readouterr().err == "" and os.listdir(empty_cache) == [path.name]


def test_a_wrong_source_is_an_error_that_names_the_line(small: Library, empty_cache: Path) -> None:
    (small.sources / "one.cpp").write_text("int one() { return two; }\n")
    with pytest.raises(BuildError, match=r"one\.cpp:1:.*error.*two"):
        small.build()
    assert os.listdir(empty_cache) == []


def test_a_folder_that_cannot_be_written(small: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOUISKV_CACHE", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="set LOUISKV_CACHE"):
        small.build()


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    return r"no C\+\+ compiler: install g\+\+ or set CXX"


def one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CXX", "stone")
    return r"CXX=stone is not there: install g\+\+ or set CXX"


@pytest.mark.parametrize("breaking", [no_compiler, one_that_is_not_there])
def test_without_a_compiler_plain_torch_runs_and_one_warning_says_so(
    breaking: Callable[[pytest.MonkeyPatch], str], untried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = breaking(monkeypatch)
    query = torch.ones(1, 2, 3)
    with pytest.warns(UserWarning, match=rf"in plain torch, not in C\+\+: {reason}") as said:
        query_cosines(query, query)
    assert len(said) == 1
    # Warnings are errors here: there is no second one.
    torch.testing.assert_close(query_cosines(query, query), torch.ones(1, 2))
    with pytest.raises(ImplementationError, match=f"cpu: {reason}"):
        query_cosines(query, query, impl="cpu")
    with pytest.raises(ImplementationError, match=reason):
        native.load()


def test_dtypes_and_devices_that_there_are_no_kernels_for() -> None:
    assert refusals.refuses_cpu(torch.empty(0, dtype=torch.float16)) == "it has no kernels for torch.float16"
    assert refusals.refuses_cpu(torch.empty(0, device="meta")) == "it runs on the CPU, not on meta"


def test_two_processes_build_at_once(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What comes of it does not matter here, and is there sooner.
    quick = tmp_path / "quick"
    quick.write_text(f'#!/bin/sh\nexec {native.cpu_library().compiler()} "$@" -O0\n')
    quick.chmod(0o755)
    monkeypatch.setenv("CXX", str(quick))
    command = [sys.executable, "-m", "louiskv.ops.build"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0] and [err for _, err in said] == ["", ""]
    path = native.cpu_library().path()
    assert all(out.startswith(f"louiskv_cpu: {path} (") for out, _ in said)
    assert os.listdir(empty_cache) == [path.name] and path.parent == empty_cache


def test_building_ahead_of_time_says_why_it_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_compiler(monkeypatch)
    assert build.main() == 1
    assert "louiskv_cpu cannot be built: no C++ compiler: install g++ or set CXX" in capsys.readouterr().err


@on_each_instruction_set
def test_an_instruction_set_can_be_asked_for(isa: str) -> None:
    environment = os.environ | {"LOUISKV_CPU_ISA": isa}
    del environment["LOUISKV_CACHE"]
    say = "import torch; from louiskv.ops.turning import query_cosines as run; print(run(*torch.ones(2, 1, 1, 3)))"
    right = subprocess.run([sys.executable, "-c", say], env=environment, capture_output=True, text=True)
    assert right.stdout == "tensor([[1.]])\n"
    wrong = subprocess.run(
        [sys.executable, "-c", say], env=environment | {"LOUISKV_CPU_ISA": "stone"}, capture_output=True, text=True
    )
    assert re.search(rf"this CPU has .*{isa}.*, not stone", wrong.stderr)


def test_the_sources_lie_in_the_package() -> None:
    assert SOURCES.parent == Path(native.__file__).parent
    units = {unit.source for unit in native.cpu_library().units}
    assert units == {path.name for path in SOURCES.glob("*.cpp")}
