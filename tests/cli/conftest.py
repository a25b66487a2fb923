"""The real default model, loaded once for all tests of the command."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner, Result

from louiskv import calibration, heads, models
from louiskv.cache_layer import CacheLayer
from louiskv.cli.commands import app
from louiskv.evaluation.texts import Haystack
from louiskv.ranks import Ranks

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Run = Callable[..., Result]


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    """The default model and its tokenizer."""
    return models.load(device="cpu")


@pytest.fixture(scope="session")
def head_scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for head scores that is empty at first."""
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="session")
def haystack(loaded: Loaded) -> Haystack:
    """The default text, its tokens counted once."""
    return Haystack.of(loaded[1])


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    """A model that must not be asked."""

    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("The model was asked.")

    monkeypatch.setattr(loaded[0], "forward", forward)


def refused(result: Result, message: str, code: int = 2) -> None:
    """Assert that there is one line that says why, and nothing else."""
    assert result.exit_code == code and not result.stdout
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, loaded: Loaded, head_scores: Path, haystack: Haystack) -> Run:
    """Runs `louiskv` with arguments, in this process.

    The default model is not loaded again, the default text not counted again, heads are scored fast.
    """
    of = Haystack.of
    monkeypatch.setattr(Haystack, "of", lambda tokenizer, path=None: haystack if path is None else of(tokenizer, path))
    monkeypatch.setattr(heads, "_folder", lambda: head_scores)
    monkeypatch.setattr(calibration, "score_heads", partial(calibration.score_heads, block=32))
    load, load_config = models.load, models.load_config

    def loading(name: str, **options: Any) -> Loaded:
        own = name == models.DEFAULT_MODEL and options == {"dtype": "auto", "device": "auto", "ranks": Ranks()}
        return loaded if own else load(name, **options)

    def loading_config(name: str = models.DEFAULT_MODEL) -> PretrainedConfig:
        return loaded[0].config if name == models.DEFAULT_MODEL else load_config(name)

    monkeypatch.setattr(models, "load", loading)
    monkeypatch.setattr(models, "load_config", loading_config)

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="louiskv", catch_exceptions=False)

    return run


def interrupt_in_layer(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Press Ctrl-C while that layer computes the attention of a prompt."""
    attend = CacheLayer.attend

    def attending(layer: CacheLayer, *args: Any) -> Any:
        if layer.index == index and args[0].shape[2] > 1:
            signal.raise_signal(signal.SIGINT)
        return attend(layer, *args)

    monkeypatch.setattr(CacheLayer, "attend", attending)
