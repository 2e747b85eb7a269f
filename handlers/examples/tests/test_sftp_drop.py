"""A real SFTP server over a temporary folder, with keys of its own."""

import os
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import asyncssh
import sftp_drop

from turnout import artefact, task
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

    async def received(self) -> list[Any]:
        """Have a tick; returns the runs of the files."""
        async with serve(sftp_drop.collect, sftp_drop.receive) as service:
            await service.run(sftp_drop.collect)
            return await service.runs(sftp_drop.receive)

    def lie_there(self) -> list[str]:
        return sorted(each.name for each in Path("partner/out").iterdir() if each.is_file())

    async def test_whole_files_are_moved_away_and_booked(self) -> None:
        Path("partner/out/a.csv").write_text("id\n1\n2\n")
        Path("partner/out/b.csv.part").write_text("i")
        (run,) = await self.received()
        self.assertEqual(run.result, 2)
        self.assertEqual(self.lie_there(), ["b.csv.part"])
        self.assertEqual(len(list(Path("partner/out/taken").glob("*-a.csv"))), 1)

    async def test_a_file_that_cannot_be_booked_fails_alone_and_is_kept(self) -> None:
        Path("partner/out/a.csv").write_bytes(b"id\n\xff\n")
        Path("partner/out/b.csv").write_text("id\n1\n")
        bad, good = await self.received()
        self.assertEqual((bad.state, good.result), ("failed", 1))
        self.assertIn("can't decode", bad.error.message)
        (kept,) = Path("partner/out/taken").glob("*-a.csv")
        self.assertEqual(kept.read_bytes(), b"id\n\xff\n")

    async def test_a_file_that_is_replaced_meanwhile_is_booked_too(self) -> None:
        booked: list[bytes] = []

        @task
        def book(kept: str) -> int:
            if not booked:
                Path("partner/out/a.csv").write_text("id\n3\n")
            booked.append(artefact(kept).read())
            return 1

        Path("partner/out/a.csv").write_text("id\n1\n")
        with patch.object(sftp_drop, "book", book):
            await self.received()
            self.assertEqual(self.lie_there(), ["a.csv"])
            await self.received()
        self.assertEqual(booked, [b"id\n1\n", b"id\n3\n"])
        self.assertEqual(len(list(Path("partner/out/taken").iterdir())), 2)

    async def test_a_large_file_does_not_hold_up_the_next(self) -> None:
        Path("partner/out/a.csv").write_text("id\n" + f"{1:900}\n" * 20_000)  # over 16 MiB
        Path("partner/out/b.csv").write_text("id\n1\n")
        large, small = await self.received()
        self.assertEqual((large.result, small.result), (20_000, 1))

    async def test_a_file_is_brought_whole(self) -> None:
        Path("ready/report.csv").write_text("day\n1\n")
        event = file_event(sftp_drop.deliver, Path("ready/report.csv"))
        async with serve(sftp_drop.deliver) as service:
            await service.emit(event)
        self.assertEqual([each.name for each in Path("partner/in").iterdir()], ["report.csv"])
