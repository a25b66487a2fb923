"""The options that commands share: every setting of every method reaches it."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from louiskv import METHODS, LouisKV, SettingsError
from louiskv.cli.options import PRESETS, MethodChoice, Sampling, takes_method, takes_model, takes_sampling
from louiskv.methods.base import setting
from tests.cli.conftest import Run

# Allowed values other than the defaults, where twice the default is not.
VALUES: dict[str, Any] = {
    "tau": 0.25,
    "threshold": 0.25,
    "decay": 0.5,
    "kernel": 9,
    "heads": "here.json",
    "trigger": "anchor",
    "cap": 9,
    "ahead": 0.5,
    "pool_bits": 8,
    "max_estimated": 64,
}


def parsed(*arguments: str) -> dict[str, Any]:
    """What a command gets that takes all the bundles."""
    app = typer.Typer()
    got: dict[str, Any] = {}

    @app.command()
    @takes_method
    @takes_model
    @takes_sampling
    def command(method: Any, model: Any, sampling: Any, other: str = "own") -> None:
        got.update(method=method, model=model, sampling=sampling, other=other)

    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return got


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_is_an_option(name: str) -> None:
    defaults = {setting.name: getattr(METHODS[name](), setting.name) for setting in METHODS[name].settings()}
    values = {key: VALUES[key] if key in VALUES else default * 2 for key, default in defaults.items()}
    flags = [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    built = parsed("--method", name, *flags)["method"].build()
    assert built == METHODS[name](**values)
    assert all(type(getattr(built, key)) is type(value) for key, value in values.items())


def test_what_is_not_given_has_its_default() -> None:
    got = parsed()
    assert got["method"] == MethodChoice("louiskv", None, {})
    assert got["method"].build() == LouisKV()
    assert got["method"].build(budget=512) == LouisKV(budget=512)
    assert got["sampling"] == Sampling(max_new_tokens=256)
    assert (got["model"].name, got["model"].dtype, got["model"].device, got["model"].impl) == (
        "smollm2",
        "auto",
        "auto",
        None,
    )
    assert got["other"] == "own"


def test_a_setting_that_is_none_or_a_number_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class InFewBits(LouisKV):
        pool_bits: int | None = setting(None, "bits of a number in the store")

    monkeypatch.setitem(METHODS, "in_few_bits", InFewBits)
    assert parsed("--method", "in_few_bits")["method"].build() == InFewBits()
    assert parsed("--method", "in_few_bits", "--pool-bits", "8")["method"].build() == InFewBits(pool_bits=8)


@pytest.mark.parametrize("method, name", [(method, name) for method in PRESETS for name in PRESETS[method]])
def test_a_preset_holds_but_for_what_is_given(method: str, name: str) -> None:
    preset, flags = PRESETS[method][name](), ["--method", method, "--preset", name]
    assert parsed(*flags)["method"].build(budget=512) == preset
    assert parsed(*flags, "--tau", "0.1")["method"].build() == replace(preset, tau=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "choice, message",
    [
        (MethodChoice("nope", None, {}), "There is no method 'nope'.*full, full_offloaded.*louiskv"),
        (MethodChoice("full", None, {"budget": 5}), "full has no setting --budget: it has none"),
        (MethodChoice("full_offloaded", None, {"tau": 0.5}), "no setting --tau: its settings are --chunk-size"),
        (MethodChoice("louiskv", "nope", {}), "no preset 'nope': its presets are: long_input, long_output, long_both"),
        (MethodChoice("full", "long_input", {}), "full has no preset 'long_input': it has none"),
    ],
)
def test_what_does_not_go_together_is_refused(choice: MethodChoice, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choice.build()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--budget", "many"], "Invalid value for .--budget.: "),
        (["--budget", "-5"], "budget=-5 is not allowed: give a whole number of at least 1"),
        (["--budget", "80"], r"at least 81, for sink=16, window=64 and 1 to choose"),
        (["--tau", "3"], "tau=3.0 is not allowed: give a number from -1 to 1"),
        (["--method", "nope"], "The methods are: full, "),
        (["--dtype", "int8"], "'auto', 'float32', 'bfloat16', 'float16'"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--top-p", "0"], "top_p=0.0"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--prefill-chunk", "0"], "prefill_chunk=0"),
        (["--impl", "nope"], "There is no implementation 'nope'. There are: .*torch"),
    ],
)
def test_bad_values_are_refused_before_anything_is_loaded(
    run: Run, flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("louiskv.models.load", lambda *args, **kwargs: pytest.fail("loaded"))
    result = run("generate", "Hello", *flags)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
