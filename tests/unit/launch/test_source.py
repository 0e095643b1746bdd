"""A script's files from git."""

import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from adaptrain.cli import main
from adaptrain.errors import InvalidJob
from adaptrain.launch import fetch_source

from tests.support.git import Repository, served


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_branch_tag_and_commit(repository: Repository, tmp_path: Path) -> None:
    old = repository.commit(train="print(1)")
    repository.tag("v1")
    new = repository.commit(train="print(2)")
    with served(repository) as url:
        for ref, commit in {"HEAD": new, "main": new, "v1": old, old: old, new: new}.items():
            into = tmp_path / f"into-{ref}"
            assert fetch_source.fetch(url, ref, into) == commit
            assert (into / "train.py").read_text() == f"print({1 if commit == old else 2})"


def test_credentials(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit(train="")
    with served(repository, login=("me", "secret")) as url:
        assert fetch_source.fetch(url, "main", tmp_path / "a", "me", "secret") == commit
        with pytest.raises(InvalidJob, match="are refused"):
            fetch_source.fetch(url, "main", tmp_path / "b", "me", "wrong")
        with pytest.raises(InvalidJob, match=r"give git\.secretRef"):
            fetch_source.fetch(url, "main", tmp_path / "c")


def test_what_is_not_there(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.commit(train="")
    with served(repository) as url:
        with pytest.raises(InvalidJob, match="no branch or tag 'dev', only branches such as main"):
            fetch_source.fetch(url, "dev", tmp_path / "a")
        with pytest.raises(InvalidJob, match=f"no commit {'a' * 40}"):
            fetch_source.fetch(url, "a" * 40, tmp_path / "b")
        with pytest.raises(InvalidJob, match="no git repository at"):
            fetch_source.fetch(f"{url}x", "main", tmp_path / "c")
    monkeypatch.setattr(fetch_source, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(OSError, match="can't be read"):
        fetch_source.fetch(url, "main", tmp_path / "d")


def test_the_pods_command(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository.commit(train="print(1)")
    said = tmp_path / "said"
    monkeypatch.setattr("sys.argv", ["adaptrain", "source"])
    with served(repository) as url:
        told = {"GIT_URL": url, "GIT_REF": "main", "SOURCE_DIR": tmp_path / "into", "TERMINATION_LOG": said}
        for name, value in told.items():
            monkeypatch.setenv(f"ADAPTRAIN_{name}", str(value))
        main.main()
        assert said.read_text() == commit
        monkeypatch.setenv("ADAPTRAIN_GIT_REF", "dev")
        with pytest.raises(SystemExit) as ended:
            main.main()
    assert ended.value.code == 64
    assert "no branch or tag 'dev'" in said.read_text()


@pytest.mark.parametrize("drips", [False, True])
def test_a_server_that_never_ends_its_answer_is_not_waited_for(
    drips: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_source, "PATIENCE_SECONDS", -1.0)
    if not drips:
        monkeypatch.setattr(fetch_source, "READ_SECONDS", 0.2)
    stop = threading.Event()

    def serve(server: socket.socket) -> None:
        held = []
        while not stop.is_set():
            with suppress(TimeoutError):
                held.append(server.accept()[0])
                held[-1].sendall(b"HTTP/1.1 200 OK\r\nX: " if drips else b"")
            for connection in held if drips else []:
                with suppress(OSError):
                    connection.sendall(b"x")
        for connection in held:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            with (
                pytest.raises(OSError, match=r"can't be read|not fetched"),
                fetch_source.within(2.0 if drips else 60.0),
            ):
                fetch_source.fetch(f"http://127.0.0.1:{server.getsockname()[1]}/r.git", "main", tmp_path / "into")
        finally:
            stop.set()
            thread.join()
