"""Imports run one way: the arrows of docs/design.md, read from the sources."""

import ast
from pathlib import Path

import pytest

import louiskv

ROOT = Path(louiskv.__file__).parent

# What each part may import of louiskv; `errors` may be imported by all.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "shard": set(),
    "joint_report": {"telemetry"},
    "ops": {"ops", "folders"},
    "units": {"units", "ops"},
    "triggers": {"triggers", "ops", "shard"},
    "importance": {"ops"},
    "merging": {"ops"},
    "store": {"store", "ops"},
    "counters": {"ops"},
    "telemetry": {"counters"},
    "folders": set(),
    "state": set(),
    "ranks": set(),
    "measured": {"shard"},
    "heads": {"folders", "measured"},
    "taus": {"measured"},
    "methods": {
        "methods",
        "units",
        "triggers",
        "importance",
        "merging",
        "store",
        "ops",
        "shard",
        "telemetry",
        "measured",
        "heads",
        "taus",
        "state",
    },
    "handles": {"methods"},
    "cache_layer": {"handles", "methods", "ops", "shard", "telemetry"},
    "cache": {"cache_layer", "joint_report", "methods", "shard", "telemetry"},
    "attach": {"cache", "handles", "methods", "ops", "shard"},
    "captured": {"cache", "cache_layer", "ops", "state"},
    "generation": {"attach", "cache", "captured", "methods", "telemetry"},
    "calibration": {"attach", "cache", "measured", "heads", "methods", "ops", "shard"},
    "plan": {"cache", "methods", "shard", "store", "telemetry"},
    "models": {"folders", "ranks", "shard"},
    "engine": {"engine", "attach", "cache", "captured", "methods", "ops", "plan", "store", "telemetry"},
    "serving": {"serving", "calibration", "engine", "methods", "models", "store", ""},
    "prompts": set(),
    "provenance": {"", "measured"},
    "results": set(),
    "contestants": {"methods"},
    "evaluation": {
        "evaluation",
        "contestants",
        "attach",
        "cache",
        "measured",
        "taus",
        "methods",
        "telemetry",
        "ops",
        "units",
        "triggers",
        "prompts",
        "provenance",
        "results",
    },
    "bench": {
        "bench",
        "contestants",
        "attach",
        "cache",
        "captured",
        "counters",
        "engine",
        "methods",
        "telemetry",
        "models",
        "plan",
        "provenance",
        "results",
        "serving",
        "store",
        "ops",
        "units",
        "triggers",
    },
    "reporting": {"reporting", "evaluation", "methods", "provenance", "results", "taus", "telemetry", ""},
    "cli": {
        "cli",
        "reporting",
        "contestants",
        "bench",
        "evaluation",
        "prompts",
        "provenance",
        "results",
        "attach",
        "cache",
        "calibration",
        "captured",
        "engine",
        "generation",
        "methods",
        "serving",
        "taus",
        "telemetry",
        "models",
        "plan",
        "ops",
        "ranks",
        "store",
        "",
    },
    "__main__": {"cli"},
    "": {"attach", "cache", "calibration", "generation", "methods"},
}
# The seam, and what works on models: all others know tensors only.
KNOW_TRANSFORMERS = {
    "cache_layer",
    "cache",
    "attach",
    "captured",
    "generation",
    "calibration",
    "models",
    "engine",
    "prompts",
    "provenance",
    "serving",
    "bench",
    "evaluation",
    "cli",
}
SOURCES = sorted(ROOT.rglob("*.py"))


def part_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            is_package = (ROOT.parent / node.module.replace(".", "/")).is_dir()
            found |= {each for each in names if is_source(each)} if is_package else set()
            found.add(node.module)
    return found


def is_source(module: str) -> bool:
    path = ROOT.parent / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    relative = path.relative_to(ROOT)
    part = "" if relative.name == "__init__.py" and len(relative.parts) == 1 else relative.parts[0].removesuffix(".py")
    for module in imports(path):
        if module.split(".")[0] == "louiskv":
            target = part_of(module)
            allowed = ARROWS[part] | {"errors"} | ({""} if part in ("bench", "cli") else set())
            assert target in allowed, f"{relative} imports {module}"
        if module.split(".")[0] == "transformers":
            assert part in KNOW_TRANSFORMERS, f"{relative} imports {module}"


def test_a_twin_never_imports_its_reference() -> None:
    for path in (ROOT / "ops").glob("*_*.py"):
        reference = path.stem.rsplit("_", 1)[0]
        assert f"louiskv.ops.{reference}" not in imports(path)


def test_importing_changes_nothing_in_transformers() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr) for node in tree.body)
    source = (ROOT / "attach.py").read_text()
    calls = [node for node in ast.parse(source).body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert calls == []
