"""An SFTP server over a folder, that lets one key in: `sftp_server.py PORT FOLDER`.

It makes its own key and that of its user in the working folder, as `known_hosts` and `id_partner`.
Each name that is opened for writing, renamed or removed is a line of the file `seen` there.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import asyncssh


class Folder(asyncssh.SFTPServer):
    """A folder, and a list of what was done to it."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel, chroot=sys.argv[2])

    def _note(self, *words: object) -> None:
        told = [each.decode() if isinstance(each, bytes) else str(each) for each in words]
        with Path("seen").open("a") as seen:
            seen.write(" ".join(told) + "\n")

    def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
        if pflags & asyncssh.FXF_WRITE:
            self._note("write", path)
        return super().open(path, pflags, attrs)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> Any:
        self._note("rename", oldpath, newpath)
        return super().posix_rename(oldpath, newpath)


def keys(port: int) -> asyncssh.SSHKey:
    """Make the keys; returns that of the host."""
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    public = host.export_public_key().decode()
    Path("known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    Path("id_partner").write_bytes(user.export_private_key())
    Path("id_partner").chmod(0o600)
    Path("authorized_keys").write_bytes(user.export_public_key())
    return host


async def main(port: int, host: asyncssh.SSHKey) -> None:
    await asyncssh.listen(
        "127.0.0.1", port,
        server_host_keys=[host], authorized_client_keys="authorized_keys", sftp_factory=Folder,
    )  # fmt: skip
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), keys(int(sys.argv[1]))))
