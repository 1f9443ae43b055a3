import os
from pathlib import Path

import pytest
import tiny_models
from tiny_models import Save

from appliance.errors import ModelError
from appliance.inference import model
from appliance.inference.model import digest_of, read_model


def test_the_bytes_that_were_hashed_are_the_bytes_that_run(save: Save) -> None:
    spec = save(tiny_models.echo())
    assert digest_of(spec.path) == spec.digest
    assert read_model(spec.path, spec.digest) == tiny_models.echo()


def test_another_model_under_the_same_name_is_refused(save: Save) -> None:
    spec = save(tiny_models.echo())
    spec.path.write_bytes(tiny_models.pick())
    with pytest.raises(ModelError, match="has changed since it was configured"):
        read_model(spec.path, spec.digest)


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    for content in (b"", b"TFL3", b"\x00" * 100, b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is not a TFLite model"):
            read_model(path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.tflite: cannot be read: No such file"):
        read_model(tmp_path / "none.tflite")


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MAX_MODEL_BYTES", 1000)
    path = tmp_path / "model.tflite"
    path.touch()
    os.truncate(path, 1001)
    with pytest.raises(ModelError, match="over the limit"):
        read_model(path)
