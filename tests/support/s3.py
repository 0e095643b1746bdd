"""A real S3 server on this machine, whose buckets are folders."""

import os
import socket
import subprocess
import time
from pathlib import Path

from localcluster import build

KEYS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
    "AWS_REGION": "us-east-1",
}
START_SECONDS = 30.0


class S3Server:
    """versitygw. Use as a context manager; it may be stopped and started again meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._program = build.programs(build.VERSITYGW)["versitygw"]
        # Held, so that nobody else is given the port while the server is stopped.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self._port = int(self._held.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "S3Server":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._held.close()

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need."""
        return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}"}

    def bucket(self, name: str) -> Path:
        """A bucket of that name, and its folder."""
        (self.folder / name).mkdir()
        return self.folder / name

    def start(self) -> None:
        secrets = {"ROOT_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "--quiet", "--port", f"127.0.0.1:{self._port}", "posix", self.folder],
                env=os.environ | secrets,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except ConnectionRefusedError:
                assert self._process.poll() is None, "the S3 server ended"
                assert time.monotonic() < until, "the S3 server does not start"
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
