"""Where members meet: who can't prove that it knows the token reaches no store, and costs no memory."""

import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from adaptrain.elastic.collectives.rendezvous import BOUNDS, MemberStore
from adaptrain.rpc import framing, handshake

from tests.unit.elastic.collectives.test_group import HOST, TOKEN, rendezvous

MAGIC = struct.pack("<BI", 0, 0x3C85F7CE)
"""With which a connection to torch's TCPStore begins."""
LONG = 8_000_000
"""Bytes of a value."""


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_members_share_what_they_set() -> None:
    place = rendezvous()
    first, second = (MemberStore(HOST, place.port, TOKEN) for _ in range(2))
    first.set("key", "value" * 100_000)
    assert second.get("key") == b"value" * 100_000
    second.wait(["key"])
    assert second.get("key") == b"value" * 100_000


def test_what_a_member_set_is_forgotten_when_it_is_gone() -> None:
    place = rendezvous()
    first, second = (MemberStore(HOST, place.port, TOKEN) for _ in range(2))
    first.set("key", "value")
    assert second.get("key") == b"value"
    del first
    until = time.monotonic() + 10
    while place._values and time.monotonic() < until:
        time.sleep(0.01)
    assert not place._values


def test_a_value_that_is_not_set_yet_is_waited_for() -> None:
    place = rendezvous()
    first, second = (MemberStore(HOST, place.port, TOKEN) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(second.get, "key")
        time.sleep(0.1)
        first.set("key", "value")
        assert asked.result(10) == b"value"


def test_a_key_is_set_once() -> None:
    place = rendezvous()
    first, second = (MemberStore(HOST, place.port, TOKEN) for _ in range(2))
    first.set("key", "value")
    assert second.get("key") == b"value"
    second.set("key", "another")
    with pytest.raises(RuntimeError, match="it closed the connection"):
        second.get("key")
    assert MemberStore(HOST, place.port, TOKEN).get("key") == b"value"


def test_many_members_meet_at_once() -> None:
    place = rendezvous()
    with ThreadPoolExecutor(64) as pool:
        stores = list(pool.map(lambda _: MemberStore(HOST, place.port, TOKEN), range(64)))
    for number, store in enumerate(stores):
        store.set(str(number), str(number))
    assert [stores[0].get(str(number)) for number in range(64)] == [str(number).encode() for number in range(64)]


def test_a_stranger_is_refused() -> None:
    place = rendezvous()
    with pytest.raises(RuntimeError, match=f"the rendezvous at {HOST} port {place.port}: the rendezvous closed"):
        MemberStore(HOST, place.port, "another token")


def test_a_member_does_not_believe_a_listener_that_does_not_know_the_token() -> None:
    with socket.create_server((HOST, 0)) as server, ThreadPoolExecutor(1) as pool:
        store = pool.submit(MemberStore, HOST, server.getsockname()[1], TOKEN)
        connection, _ = server.accept()
        with connection:
            asked = handshake.challenge()
            connection.sendall(framing.encode(asked))
            said = framing.decode(connection.recv(65536))
            # Not even with the proof that a coordinator of this job gives.
            connection.sendall(framing.encode(handshake.answer(TOKEN, asked, said, {"do": "welcome"})))
            with pytest.raises(RuntimeError, match="does not prove that it knows the token"):
                store.result(10)


def test_a_workers_proof_for_the_coordinator_opens_no_store() -> None:
    place = rendezvous()
    with (
        socket.create_connection((HOST, place.port)) as connection,
        pytest.raises(ConnectionError, match="closed the connection"),
    ):
        handshake.introduce(connection, TOKEN, dict)


def test_strangers_values_take_no_memory() -> None:
    place, before = rendezvous(), resident()
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection((HOST, place.port))) for _ in range(40)]
        for one in held:
            one.settimeout(2)
            with suppress(OSError):
                one.sendall(MAGIC + struct.pack("<BQ", 1, 8) + b"k" * 8 + struct.pack("<Q", LONG) + b"v" * (LONG - 9))
    assert resident() - before < 5 * LONG
    MemberStore(HOST, place.port, TOKEN).set("key", "value")


def test_strangers_keep_no_member_out() -> None:
    place = rendezvous()
    with ExitStack() as stack:
        for _ in range(BOUNDS.strangers * 2):
            stack.enter_context(socket.create_connection((HOST, place.port)))
        MemberStore(HOST, place.port, TOKEN).set("key", "value")
