"""A Kafka cluster that answers with errors: librdkafka's mock, out of confluent-kafka's wheel."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any


class MockCluster:
    """librdkafka's mock cluster: three brokers in this process that err on request.

    It is for one consumer or producer at a time; groups of several members do not settle on it.
    """

    PRODUCE, FETCH, OFFSET_COMMIT, FIND_COORDINATOR, HEARTBEAT = 0, 1, 8, 10, 12
    DISCONNECT = -195

    def __init__(self, brokers: int = 3) -> None:
        self._library = ctypes.CDLL(str(_librdkafka()))
        pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        configuration = self._call("conf_new", pointer)
        problem = ctypes.create_string_buffer(512)
        self._client = self._call(
            "new", pointer, number(0), pointer(configuration), problem, ctypes.c_size_t(512)
        )
        assert self._client, problem.value.decode()
        self._cluster = self._call(
            "mock_cluster_new", pointer, pointer(self._client), number(brokers)
        )
        self.bootstrap: str = self._mock("cluster_bootstraps", text).decode()
        self._mock("group_initial_rebalance_delay_ms", None, ctypes.c_int32(100))

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic whose partitions have a copy on each broker."""
        topic = ctypes.c_char_p(name.encode())
        self._do("topic_create", topic, ctypes.c_int(partitions), ctypes.c_int(1))

    def answer(self, api: int, *errors: int) -> None:
        """Answer the next requests of an API with these error codes, one each."""
        codes = (ctypes.c_int * len(errors))(*errors)
        arguments = (ctypes.c_int16(api), ctypes.c_size_t(len(errors)), codes)
        self._mock("push_request_errors_array", None, *arguments)

    def down(self, broker: int) -> None:
        """Take a broker (1, 2, 3) off the network."""
        self._do("broker_set_down", ctypes.c_int32(broker))

    def up(self, broker: int) -> None:
        """Bring a broker back."""
        self._do("broker_set_up", ctypes.c_int32(broker))

    def slow(self, broker: int, milliseconds: int) -> None:
        """Delay each answer of a broker."""
        self._do("broker_set_rtt", ctypes.c_int32(broker), ctypes.c_int(milliseconds))

    def lead(self, topic: str, partition: int, broker: int) -> None:
        """Move a partition's leader."""
        name = ctypes.c_char_p(topic.encode())
        self._do("partition_set_leader", name, ctypes.c_int32(partition), ctypes.c_int32(broker))

    def coordinate(self, group: str, broker: int) -> None:
        """Move a group's coordinator."""
        kind, name = ctypes.c_char_p(b"group"), ctypes.c_char_p(group.encode())
        self._do("coordinator_set", kind, name, ctypes.c_int32(broker))

    def close(self) -> None:
        """End all brokers."""
        self._mock("cluster_destroy", None)
        self._call("destroy", None, ctypes.c_void_p(self._client))

    def _do(self, name: str, *arguments: Any) -> None:
        code = self._mock(name, ctypes.c_int, *arguments)
        assert code == 0, f"{name}: error {code}"

    def _mock(self, name: str, answer: Any, *arguments: Any) -> Any:
        return self._call(f"mock_{name}", answer, ctypes.c_void_p(self._cluster), *arguments)

    def _call(self, name: str, answer: Any, *arguments: Any) -> Any:
        function = getattr(self._library, f"rd_kafka_{name}")
        function.restype = answer
        return function(*arguments)


def _librdkafka() -> Path:
    """Return the library in the confluent-kafka wheel; its mock functions promise no ABI."""
    found = importlib.util.find_spec("confluent_kafka")
    assert found is not None, "confluent-kafka is not installed"
    assert found.origin is not None
    folder = Path(found.origin).parent.parent
    return next(folder.glob("confluent_kafka.libs/librdkafka-*.so*"))
