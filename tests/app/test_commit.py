"""The recorded commit of a run against git."""

import subprocess

import pytest

from dpn.runs import commit as code


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "ROOT", tmp_path)
    code.commit.cache_clear()
    yield tmp_path
    code.commit.cache_clear()


def git(folder, *arguments):
    user = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    command = ["git", "-C", folder, *user, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_uncommitted_changes_are_marked(checkout):
    for place in ("dpn/a.py", "tests/b.py"):
        (checkout / place).parent.mkdir()
        (checkout / place).write_text("1")
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "All")
    head = git(checkout, "rev-parse", "--short", "HEAD")
    (checkout / "tests/b.py").write_text("2")
    assert code.commit() == head
    assert code.commit("tests") == f"{head}+"
    code.commit.cache_clear()
    (checkout / "dpn/a.py").write_text("2")
    assert code.commit() == f"{head}+"


def test_an_installed_package_has_no_commit(checkout):
    assert code.commit() is None


def test_a_checkout_that_git_refuses_has_no_commit(checkout):
    (checkout / ".git").write_text("nothing")
    assert code.commit() is None
