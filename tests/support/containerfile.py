"""Builds and runs an image by the instructions of its Containerfile, where there is no Docker.

The base image is an overlay on this machine's own files, with its Python; each instruction runs as
root in there. The image then runs as Kubernetes' restricted containers do: as its user, without
capabilities, with nothing to write but its volume and `/tmp`. Needs root. Not here: what the real
base image contains, and any instruction that ours do not have.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .program import until
from .stranger import needs_namespaces

_MOUNT = """
cd "$FOLDER"
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --rbind /dev root/dev
"""

_BUILD = f"""{_MOUNT}
mount -t proc proc root/proc
exec chroot root sh -euc "cd $WORKDIR && $RUN"
"""

_RUN = f"""{_MOUNT}
for mount in $MOUNTS; do
    mkdir -p "root/${{mount#*:}}"
    mount --bind "${{mount%:*}}" "root/${{mount#*:}}"
done
mount -t tmpfs tmpfs root/tmp
mount -o remount,bind,ro root
exec unshare --pid --fork --kill-child --net --ipc --uts bash -euc '
mount -t proc proc root/proc
ip link set lo up
exec env --ignore-environment $VARIABLES chroot root \
    setpriv --reuid="$IDENTITY" --regid="$IDENTITY" --clear-groups \
    --no-new-privs --bounding-set=-all --inh-caps=-all sh -euc "cd $WORKDIR && exec $COMMAND"
'
"""


@dataclass
class Image:
    """An image, or a stage on the way to it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volume: str = ""
    layers: list[Path] = field(default_factory=list)
    """What the image adds to its base: the targets of its own copies."""

    @property
    def files(self) -> Path:
        """What was added to the base."""
        return self.folder / "upper"

    def layer_bytes(self) -> int:
        """How large what was copied into it is as layers, packed as registries have them."""
        names = shlex.join(str(path.relative_to(self.files)) for path in self.layers)
        packed = subprocess.run(
            f"tar --create {names} | gzip | wc --bytes",
            cwd=self.files, shell=True, check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return int(packed.stdout)


@contextmanager
def build(containerfile: Path, context: Path) -> Iterator[Image]:
    """Build the image whose Containerfile is in a folder that has all that it may see."""
    needs_namespaces()
    folder = Path(tempfile.mkdtemp(prefix="turnout-image-"))
    stages: dict[str, Image] = {}
    try:
        image = None
        for word, rest in instructions(containerfile.read_text()):
            if word == "FROM":
                image = _base(folder / f"stage{len(stages)}")
                stages[rest.partition(" AS ")[2] or "final"] = image
            else:
                assert image is not None, f"{word} before FROM"
                _follow(image, word, rest, context, stages)
        assert image is not None
        yield image
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield a Containerfile's instructions: the word, and what comes after it."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            yield word, rest.strip()


def _base(folder: Path) -> Image:
    """Return this machine with `python` and `pip`, readable for everybody as in an image."""
    python = Path(os.path.realpath(sys.executable))
    binaries = folder / "upper" / str(python.parent).lstrip("/")
    for made in (binaries, folder / "upper/root", folder / "work", folder / "root"):
        made.mkdir(parents=True, exist_ok=True)
    folder.parent.chmod(0o755)
    (binaries / "python").symlink_to(python.name)
    return Image(folder, {"PATH": f"{python.parent}:/usr/bin:/bin:/usr/sbin:/sbin"})


def _follow(image: Image, word: str, rest: str, context: Path, stages: Mapping[str, Image]) -> None:
    match word:
        case "WORKDIR":
            image.workdir = rest
            (image.files / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "COPY":
            _copy(image, rest, context, stages)
        case "RUN":
            _inside(image, _BUILD, WORKDIR=image.workdir, RUN=rest, **image.environment)
        case "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                image.environment[name] = value.replace("$PATH", image.environment["PATH"])
        case _:
            _note(image, word, rest)


def _note(image: Image, word: str, rest: str) -> None:
    """Keep what an instruction says of how the image runs."""
    match word:
        case "USER":
            image.user = rest
        case "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        case "CMD":
            image.command = json.loads(rest)
        case "HEALTHCHECK":
            image.health = json.loads(re.sub(r"^.*?CMD ", "", rest))
        case "VOLUME":
            image.volume = rest
        case "EXPOSE" | "STOPSIGNAL":
            pass
        case _:
            raise AssertionError(f"{word} is not followed here")


def _copy(image: Image, rest: str, context: Path, stages: Mapping[str, Image]) -> None:
    *options, source, target = rest.split()
    place = image.files / str(Path(image.workdir) / target).lstrip("/")
    origin = context
    for option in options:
        origin = stages[option.removeprefix("--from=")].files
        image.layers.append(place)
    found = origin / source.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True)


def _inside(image: Image, script: str, **variables: str) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-euc", script],
        env={"FOLDER": str(image.folder), **variables},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


class Container:
    """A running container."""

    def __init__(self, image: Image, process: subprocess.Popen[str]) -> None:
        self._image = image
        self.process = process

    def _leader(self) -> int:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = path.read_text().split() if path.exists() else []
        return int(children[0]) if children else 0

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user."""
        identity = _identity(self._image)
        return subprocess.run(
            ["nsenter", f"--target={self._leader()}", "--mount", "--pid", "--net", "--root",
             f"--wd=/proc/{self._leader()}/cwd", "setpriv", f"--reuid={identity}",
             f"--regid={identity}", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
             *words],
            env=self._image.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def has_started(self) -> bool:
        """Whether its first process is there."""
        return self._leader() > 0

    def is_healthy(self) -> bool:
        """Whether its health check says so."""
        return self.run(*self._image.health).returncode == 0

    def stop(self) -> int:
        """Stop it as its supervisor would; returns its exit code."""
        os.kill(self._leader(), signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """End what is left of it."""
        if self.process.poll() is None:
            os.kill(self._leader() or self.process.pid, signal.SIGKILL)
        self.process.wait(20)


def _identity(image: Image) -> str:
    accounts = (image.files / "etc/passwd").read_text()
    found = re.search(rf"^{image.user}:[^:]*:(\d+):", accounts, re.MULTILINE)
    assert found, f"no user {image.user} in the image"
    return found[1]


@contextmanager
def run(image: Image, *, mounts: Mapping[Path, str]) -> Iterator[Container]:
    """Run the image's own command; its volume is thrown away.

    The volume is as the kubelet makes a new disk for `fsGroup`: root's, and the group's to write.
    """
    identity = int(_identity(image))
    volume = Path(tempfile.mkdtemp(prefix="turnout-volume-"))
    (volume / "lost+found").mkdir(0o700)
    os.chown(volume, 0, identity)
    volume.chmod(0o2775)
    binds = {volume: image.volume, **mounts}
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "bash", "-euc", _RUN],
        env={
            "PATH": os.environ["PATH"],
            "FOLDER": str(image.folder),
            "MOUNTS": " ".join(f"{host}:{inside}" for host, inside in binds.items()),
            "VARIABLES": " ".join(f"{name}={value}" for name, value in image.environment.items()),
            "IDENTITY": str(identity),
            "WORKDIR": image.workdir,
            "COMMAND": shlex.join([*image.entrypoint, *image.command]),
        },
        stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    container = Container(image, process)
    try:
        until(container.has_started, 20, "a container that has started")
        yield container
    finally:
        container.kill()
        shutil.rmtree(volume, ignore_errors=True)
