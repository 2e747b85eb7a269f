"""A real SFTP server over a temporary folder, with keys of its own."""

import os
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import asyncssh
import sftp_drop

from turnout.testing import file_event, serve


class SftpDrop(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        before, folder = Path.cwd(), TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, before)
        os.chdir(folder.name)
        for name in ("partner/out/taken", "partner/in", "ready"):
            Path(name).mkdir(parents=True)
        host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        Path("authorized_keys").write_bytes(user.export_public_key())
        Path("id_partner").write_bytes(user.export_private_key())
        self.server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host],
            authorized_client_keys="authorized_keys",
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot="partner"),
        )
        self.addAsyncCleanup(self.server.wait_closed)
        self.addCleanup(self.server.close)
        port = self.server.get_port()
        Path("known_hosts").write_text(f"[127.0.0.1]:{port} {host.export_public_key().decode()}")
        where = patch.dict(os.environ, {"PARTNER_SFTP": f"127.0.0.1:{port}"})
        where.start()
        self.addCleanup(where.stop)

    async def test_whole_files_are_booked_and_moved_away(self) -> None:
        Path("partner/out/a.csv").write_text("id\n1\n2\n")
        Path("partner/out/b.csv.part").write_text("i")
        async with serve(sftp_drop.collect) as service:
            result = await service.run(sftp_drop.collect)
        self.assertEqual(result.result, {"a.csv": 2})
        self.assertTrue(Path("partner/out/taken/a.csv").exists())
        self.assertTrue(Path("partner/out/b.csv.part").exists())

    async def test_a_large_file_does_not_hold_up_the_next(self) -> None:
        Path("partner/out/a.csv").write_text("id\n" + f"{1:900}\n" * 20_000)  # over 16 MiB
        Path("partner/out/b.csv").write_text("id\n1\n")
        async with serve(sftp_drop.collect) as service:
            result = await service.run(sftp_drop.collect)
        self.assertEqual(result.result, {"a.csv": 20_000, "b.csv": 1})

    async def test_a_file_is_brought_whole(self) -> None:
        Path("ready/report.csv").write_text("day\n1\n")
        event = file_event(sftp_drop.deliver, Path("ready/report.csv"))
        async with serve(sftp_drop.deliver) as service:
            await service.emit(event)
        self.assertEqual([each.name for each in Path("partner/in").iterdir()], ["report.csv"])
