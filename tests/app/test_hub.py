from types import SimpleNamespace

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from dpn.common import hub


@pytest.fixture(autouse=True)
def _forget():
    hub._ask_hub.cache_clear()


def answer(monkeypatch, reply):
    def model_info(repository, timeout):
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=model_info))


def test_places(monkeypatch, tmp_path):
    answer(monkeypatch, ConnectionError())
    assert hub.why_missing(str(tmp_path)) is None
    assert hub.find(str(tmp_path)) == tmp_path
    assert hub.why_missing(f"{tmp_path}/none") == "does not exist"
    assert hub.why_missing("meta/model") == (
        "does not exist here, and the Hugging Face Hub cannot be reached"
    )
    with pytest.raises(FileNotFoundError, match=r"meta/model does not exist here, .* a Hub id"):
        hub.find("meta/model")


def test_ids_on_the_hub(monkeypatch, tmp_path):
    answer(monkeypatch, "a model")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: f"/cache/{name}")
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, file: f"/cache/{name}/{file}")
    assert str(hub.find("lmsys/vicuna")) == "/cache/lmsys/vicuna"
    assert str(hub.find("lmsys/vicuna/sub/a.bin")) == "/cache/lmsys/vicuna/sub/a.bin"


def test_ids_that_are_nowhere(monkeypatch):
    response = SimpleNamespace(status_code=404, headers={}, request=None, url="")
    answer(monkeypatch, RepositoryNotFoundError("no", response=response))
    assert hub.why_missing("a/b") == "exists neither here nor on the Hugging Face Hub"
