"""Look at the disk every ten seconds: the smallest useful flow, in six lines."""

from shutil import disk_usage

from turnout import every, flow


@flow(on=every("10s"))
def disk_free() -> int:
    """Return the free bytes of the disk that holds the working folder."""
    return disk_usage(".").free
