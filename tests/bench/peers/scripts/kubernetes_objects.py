"""Say what Kubernetes would refuse of objects: `kubernetes_objects.py VERSION [VERSION ...]`.

It reads the objects as a JSON list, and prints for each what the first of the versions refuses of
it, or null. The version `latest` is the newest one whose schemas are installed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import kubernetes_validate


def refusal(described: dict[str, Any], versions: list[str]) -> str | None:
    try:
        for version in versions:
            kubernetes_validate.validate(described, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return None


asked = [kubernetes_validate.latest_version() if v == "latest" else v for v in sys.argv[1:]]
json.dump([refusal(each, asked) for each in json.load(sys.stdin)], sys.stdout)
