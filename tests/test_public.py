"""What users may rely on: names, their signatures, and that they are documented."""

import inspect
from dataclasses import is_dataclass
from importlib.metadata import version

import louiskv
from louiskv import METHODS, Method, engine


def test_names() -> None:
    assert sorted(louiskv.__all__) == [
        "ArkVale",
        "ClusterKV",
        "Eviction",
        "FIER",
        "FreeKV",
        "Full",
        "FullOffloaded",
        "Generated",
        "H2O",
        "HostMemoryError",
        "ImplementationError",
        "KeepKV",
        "LServeReuse",
        "LouisKV",
        "LouisKVCache",
        "LouisKVError",
        "LouisKVPlus",
        "METHODS",
        "Method",
        "ModelLoadError",
        "NotCalibratedError",
        "OracleTopK",
        "Quest",
        "RaaS",
        "RazorAttention",
        "Retrieval",
        "SettingsError",
        "SnapKV",
        "StreamingLLM",
        "UnsupportedModelError",
        "__version__",
        "attach",
        "generate",
        "score_heads",
    ]
    assert louiskv.__version__ == version("louiskv")


def test_names_of_the_engine() -> None:
    assert sorted(engine.__all__) == [
        "Answer",
        "Attended",
        "Conversation",
        "Engine",
        "EngineStoppedError",
        "Figures",
        "Logprob",
        "Piece",
        "QueueFullError",
        "Request",
        "RequestError",
        "Sampling",
        "Usage",
    ]
    for name in engine.__all__:
        thing = getattr(engine, name)
        assert inspect.getdoc(thing), name
        assert not issubclass(thing, Exception) or issubclass(thing, louiskv.LouisKVError)


def test_everything_public_says_what_it_is() -> None:
    for name in louiskv.__all__:
        thing = getattr(louiskv, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name


def test_methods_have_their_file_names_and_frozen_settings() -> None:
    for name, method in METHODS.items():
        assert method.__module__ == f"louiskv.methods.{name}"
        assert issubclass(method, Method)
        assert is_dataclass(method)
        assert method.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert method.paper
        assert method.keeps
        assert all(setting.metadata["help"] for setting in method.settings())


def test_the_settings_of_louiskv() -> None:
    assert [setting.name for setting in louiskv.LouisKV.settings()] == [
        "budget",
        "sink",
        "window",
        "tau",
        "calibration",
        "unit_size",
        "min_segment",
        "max_segment",
        "dense_layers",
        "iterations",
        "chunk_size",
    ]


def test_errors_are_of_one_family() -> None:
    for error in (
        louiskv.SettingsError,
        louiskv.UnsupportedModelError,
        louiskv.HostMemoryError,
        louiskv.ImplementationError,
        louiskv.ModelLoadError,
        louiskv.NotCalibratedError,
    ):
        assert issubclass(error, louiskv.LouisKVError)
    assert issubclass(louiskv.SettingsError, ValueError)
    assert issubclass(louiskv.HostMemoryError, MemoryError)
