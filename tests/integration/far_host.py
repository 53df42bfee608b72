"""A device for tests: an OpenSSH server on this machine with a user of its own.

Its configuration, keys and the client's known hosts lie in one folder; nothing of the system's is
read or changed but the list of users.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = "edgetune-test"
_SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


@dataclass(frozen=True)
class FarHost:
    """The server's port, the user's home, and a folder with `ssh` and `sftp` that know the key."""

    port: int
    home: Path
    programs: Path

    @property
    def environment(self) -> dict[str, str]:
        """What finds the programs."""
        return {"PATH": f"{self.programs}:{os.environ['PATH']}"}

    def address(self, port: int | None = None) -> str:
        """The server's address, or that of something in front of it."""
        return f"ssh://{USER}@127.0.0.1:{port or self.port}"


@contextmanager
def far_host(folder: Path) -> Iterator[FarHost]:
    """The server, running; skips where it cannot be had. `folder` and all above it must be open
    to other users."""
    if os.geteuid() != 0:
        pytest.skip("a server with a user of its own needs root")
    if _SSHD is None or shutil.which("useradd") is None:
        pytest.skip("no OpenSSH server here: apt-get install openssh-server")
    home = folder / "home"
    _remove_user()
    added = subprocess.run(
        ["useradd", "--home-dir", str(home), "--create-home", "--shell", "/bin/sh", USER],
        capture_output=True,
        text=True,
        check=False,
    )
    if added.returncode != 0:
        pytest.skip(f"no user can be made here: {added.stderr.strip()}")
    try:
        # An account with a locked password may not log in by key either.
        subprocess.run(["usermod", "-p", "*", USER], check=True, capture_output=True)
        yield from _serve(folder, home)
    finally:
        _remove_user()


def _serve(folder: Path, home: Path) -> Iterator[FarHost]:
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (home / ".ssh").mkdir()
    shutil.copyfile(folder / "user_key.pub", home / ".ssh" / "authorized_keys")
    owner = pwd.getpwnam(USER)
    for path in (home / ".ssh", home / ".ssh" / "authorized_keys"):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    # The privilege separation folder that the server asks for.
    Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
        "UsePAM no\nPasswordAuthentication no\nStrictModes no\nPrintMotd no\n"
        "Subsystem sftp internal-sftp\n"
    )
    log = (folder / "sshd.log").open("wb")
    assert _SSHD is not None
    server = subprocess.Popen([_SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait_for(port, server, folder / "sshd.log")
        yield FarHost(port, home, _programs(folder))
    finally:
        server.terminate()
        server.wait()
        log.close()


def _programs(folder: Path) -> Path:
    """`ssh` and `sftp` with a configuration of their own: the system's programs never look
    into another home than the user's."""
    key = (folder / "host_key.pub").read_text().split()
    # One host key for whatever stands in front of the server.
    (folder / "known_hosts").write_text(f"far {key[0]} {key[1]}\n")
    (folder / "ssh_config").write_text(
        f"Host 127.0.0.1\nHostKeyAlias far\nIdentityFile {folder}/user_key\nIdentitiesOnly yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
    )
    place = folder / "programs"
    place.mkdir()
    for name in ("ssh", "sftp"):
        program = place / name
        program.write_text(f'#!/bin/sh\nexec {shutil.which(name)} -F {folder}/ssh_config "$@"\n')
        program.chmod(0o755)
    return place


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"the OpenSSH server does not run here: {log.read_text().strip()[-300:]}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    pytest.fail("the OpenSSH server does not listen")


def _remove_user() -> None:
    subprocess.run(["userdel", "--force", USER], capture_output=True, check=False)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Proxy:
    """Passes connections on to a port and counts the bytes that go there; `limit`: after how many
    it cuts every connection, and takes no more of them until it is null again."""

    def __init__(self, port: int, limit: int | None = None) -> None:
        self.limit, self.sent = limit, 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError), near, socket.create_connection(("127.0.0.1", self._target)) as far:
            back = threading.Thread(target=self._pass, args=(far, near, False), daemon=True)
            back.start()
            self._pass(near, far, True)
            back.join()

    def _pass(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 14):
                if counts:
                    if self.limit is not None and self.sent + len(piece) > self.limit:
                        break
                    self.sent += len(piece)
                sink.sendall(piece)
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
