"""Compile kernels at first use, and keep what was compiled."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from louiskv.folders import cache_folder

SOURCES = Path(__file__).parent / "csrc"


class BuildError(Exception):
    """Kernels cannot be compiled; says why, and what to do."""


@dataclass(frozen=True)
class Unit:
    """One source file, compiled with flags of its own.

    Attributes:
        source: Its name in the folder of sources.
        flags: Flags beside those of the library.
    """

    source: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """A shared library of kernels.

    Attributes:
        name: What the file is called, before the hash.
        language: What the sources are written in, for messages.
        compilers: Names of compilers, the best first.
        variable: Environment variable that names another compiler.
        units: What is compiled.
        flags: Flags of every unit.
        link_flags: Flags of the link.
        include: Folders of headers; what lies there is no part of the hash.
        sources: Folder of the sources.
        advice: What to do where there is no compiler; empty to install the best or set the variable.
        by_any: Whether what any version of the compiler made will do, so that none is needed to find it.
    """

    name: str
    language: str
    compilers: tuple[str, ...]
    variable: str
    units: tuple[Unit, ...]
    flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()
    include: tuple[Path, ...] = field(default=())
    sources: Path = SOURCES
    advice: str = ""
    by_any: bool = False

    def compiler(self) -> str:
        """Path of the compiler.

        Raises:
            BuildError: There is none.
        """
        asked = os.environ.get(self.variable)
        for name in (asked,) if asked else self.compilers:
            found = shutil.which(name)
            if found is not None:
                return found
        none = f"{self.variable}={asked} is not there" if asked else f"no {self.language} compiler"
        raise BuildError(f"{none}: {self.advice or f'install {self.compilers[0]} or set {self.variable}'}")

    def path(self) -> Path:
        """Where the library lies, or will once it is built: of the sources, the flags, the compiler and the platform.

        Raises:
            BuildError: There is no compiler.
        """
        version = "" if self.by_any else _run([self.compiler(), "--version"])
        recipe = (version, platform.system(), platform.machine(), self.units, self.flags, self.link_flags)
        digest = hashlib.sha256(repr(recipe).encode())
        for file in sorted(self.sources.iterdir()):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
        return cache_folder() / "kernels" / f"{self.name}-{digest.hexdigest()[:16]}.so"

    def build(self, *, tell: bool = True) -> Path:
        """Compile the library, unless it is there already.

        Args:
            tell: Whether to say on stderr that it compiles, which takes seconds.

        Raises:
            BuildError: It cannot be compiled or written.
        """
        path = self.path()
        if path.is_file():
            return path
        if tell:
            print(f"louiskv: compiling kernels in {self.language}, once, into {path.parent}", file=sys.stderr)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when it is whole: of several processes that build at once each leaves the same file.
            with tempfile.TemporaryDirectory(prefix=f"{path.stem}-", dir=path.parent) as folder:
                made = self._compile(Path(folder))
                made.replace(path)
        except OSError as error:
            raise BuildError(f"{path} cannot be written ({error}): set LOUISKV_CACHE to a folder that can") from error
        return path

    def _compile(self, folder: Path) -> Path:
        compiler, made = self.compiler(), folder / "library.so"
        include = [f"-I{each}" for each in (self.sources, *self.include)]
        objects = [folder / f"{number}.o" for number in range(len(self.units))]
        commands = [
            [compiler, "-c", str(self.sources / unit.source), "-o", str(each), *self.flags, *unit.flags, *include]
            for unit, each in zip(self.units, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(partial(_run, folder=folder), commands))
        link = [compiler, "-shared", *map(str, objects), "-o", str(made), *self.flags, *self.link_flags]
        _run(link, folder)
        return made


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    # nvcc names its own files by its process: in another folder, those of a second one cannot meet them.
    there = os.environ if folder is None else {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=there)
    if done.returncode:
        lines = done.stderr.splitlines()
        error = next((line for line in lines if "error" in line), lines[-1] if lines else "it says nothing")
        raise BuildError(f"{command[0]} failed with exit code {done.returncode}: {error.strip()}")
    return done.stdout
