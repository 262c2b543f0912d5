from functools import partial
from types import SimpleNamespace

import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from dpn.common import hub


@pytest.fixture(autouse=True)
def _forget(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "snapshot_download", partial(snapshot_download, cache_dir=tmp_path))
    hub._ask_hub.cache_clear()
    hub._downloaded.cache_clear()


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


def test_small_files_alone(monkeypatch):
    answer(monkeypatch, "a model")
    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        return "/cache"

    monkeypatch.setattr(hub, "snapshot_download", download)
    hub.find("lmsys/vicuna", weights=False)
    hub.find("lmsys/vicuna")
    small, all_ = map(set, asked)
    assert {"*.json", "*.jinja"} <= small
    assert all_ - small == {"*.safetensors", "*.bin"}


def test_an_earlier_download_is_used_without_a_connection(monkeypatch, tmp_path):
    answer(monkeypatch, ConnectionError())
    repository = tmp_path / "models--a--b"
    (repository / "snapshots" / "1234").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1234")
    assert hub.why_missing("a/b") is None
    assert hub.find("a/b") == repository / "snapshots" / "1234"


def test_a_gated_model_asks_for_a_login(monkeypatch):
    answer(monkeypatch, "a model")
    response = SimpleNamespace(status_code=403, headers={}, request=None, url="")

    def download(name, allow_patterns):
        raise GatedRepoError("no", response=response)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(PermissionError, match=r"gated: .*huggingface.co/a/b.* hf auth login"):
        hub.find("a/b")


def test_what_has_the_form_of_an_id():
    assert hub.is_id("llava-hf/llava-1.5-7b-hf")
    assert not any(map(hub.is_id, ("model", "/a/b", "./a", "outputs/main/run", "a/b/c.bin")))
    assert not any(map(hub.is_id, ("../x", "a/b..c", "a/b--c", "a/-b", "a/b.", "a/" + "b" * 97)))


@pytest.mark.parametrize("name", ["../x", "a/b..c", "a/b--c", "é/b", "a/" + "b" * 97, "\0/x"])
def test_names_that_the_hub_cannot_have(name, monkeypatch):
    answer(monkeypatch, ConnectionError())
    assert hub.why_missing(name) == "does not exist"
