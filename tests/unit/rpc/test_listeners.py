"""What listens: strangers in number, in time and in what they say, proofs of the token both ways, and IPv6."""

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Any

import aiohttp
import pytest
from adaptrain import clock
from adaptrain.elastic.membership.client import CoordinatorClient, Identity
from adaptrain.elastic.membership.coordinator import Coordinator
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.observability.metrics import JobMetrics
from adaptrain.rpc import framing, handshake, http
from adaptrain.rpc.client import NotOurs, ask
from adaptrain.rpc.listener import Bounds, Guest, Listener, source
from adaptrain.rpc.messages import FROM_COORDINATOR, FROM_WORKER
from adaptrain.rpc.ports import join, listen_on, listens_at, split
from adaptrain_api.contracts.proof import NONCE_SECONDS, Caller, Gate
from adaptrain_operator import health

from tests.support.protocol import greet, receive

TOKEN = "secret"
HELLO = {"id": "w", "name": "w", "host": "h", "port": 1, "group": 0, "peers": [], "version": 0}
ODD: list[Any] = [None, True, -1, 2**63, 10**300, 1e308, float("inf"), float("nan"), "", "x" * 5000, "\ud800", [], {}]
SAID: list[framing.Frame] = [
    {"is": "beating", "doing": "computing", "age": 0.1, "bound": 0.0, "version": 1, "step": 1},
    {"is": "ready", "epoch": 1 << 32, "port": 1234},
    {"is": "broken", "epoch": 1 << 32, "why": "x"},
    {"is": "ended", "epoch": 1 << 32, "failed": False},
    {"is": "note", "message": "m"},
    {"is": "stall", "epoch": 1 << 32, "seconds": 0.5},
    {"is": "report", "step": 3, "loss": 0.5, "metrics": {"val/loss": 1.0}, "best": {}, "checkpoint_error": ""},
    {"is": "done", "result": {"outcome": "completed", "step": 3, "epoch": 1}, "step": 3},
]


class Served:
    """A coordinator, in this process."""

    def __init__(self, coordinator: Coordinator, control: int, web: int) -> None:
        self.coordinator, self.control, self.web = coordinator, control, web

    async def join(self, **said: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, framing.Frame]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.control, limit=framing.MAX_FRAME)
        return reader, writer, await greet(reader, writer, TOKEN, HELLO | said)

    async def ask(self, caller: Caller | None = None) -> Any:
        said = await asyncio.to_thread(ask, ("127.0.0.1", self.web), caller or Caller(TOKEN), "/progress")
        return json.loads(said)

    def refused(self, reason: str, listener: str = "control") -> float:
        counter = self.coordinator._metrics.refusals._counter
        return float(counter.labels("ns", "job", listener, reason)._value.get())


@asynccontextmanager
async def served(host: str = "127.0.0.1") -> AsyncIterator[Served]:
    coordinator = Coordinator(1, TOKEN, 1, "ns", "job")
    opened: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(coordinator.run(host, 0, 0, lambda *ports: opened.set_result(ports)))
    yield Served(coordinator, *await opened)
    assert not task.done(), "the coordinator goes on, whatever was said to it"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def run(check: Any) -> None:
    asyncio.run(asyncio.wait_for(check, 60))


# The token


def test_the_token_is_proved_both_ways_and_never_sent() -> None:
    async def check() -> None:
        async with served() as at:
            joined = await at.join()
            assert joined[2]["do"] == "welcome"
            for said in ({"token": TOKEN}, {"proof": "0" * 64, "nonce": "0" * 32}, {"proof": "\ud800", "nonce": "é"}):
                reader, writer = await asyncio.open_connection("127.0.0.1", at.control)
                await reader.readline()
                writer.write(framing.encode({"is": "hello", "protocol": framing.PROTOCOL, **HELLO, **said}))
                assert await reader.read() == b""
            assert at.refused("odd") == 3
            assert len(at.coordinator._writers) == 1

    run(check())
    sent = handshake.hello(TOKEN, handshake.challenge(), HELLO)
    assert TOKEN not in json.dumps(sent)
    assert TOKEN not in Caller(TOKEN).authorization("GET", "/progress")


def test_a_proof_is_of_no_use_elsewhere() -> None:
    first, second = handshake.challenge(), handshake.challenge()
    hello = handshake.hello(TOKEN, first, HELLO)
    handshake.check_hello(TOKEN, first, hello)
    for challenge, said in ((second, hello), (first, hello | {"id": "another"}), (first, hello | {"protocol": 9})):
        with pytest.raises(handshake.Unproved):
            handshake.check_hello(TOKEN, challenge, said)
    answer = handshake.answer(TOKEN, first, hello, {"do": "welcome", "number": 1})
    handshake.check_answer(TOKEN, first, hello, answer)
    for given, said in ((hello, answer | {"number": 2}), (handshake.hello(TOKEN, first, HELLO), answer)):
        with pytest.raises(handshake.Unproved):
            handshake.check_answer(TOKEN, first, given, said)
    with pytest.raises(handshake.Unproved):
        handshake.check_answer(TOKEN, first, hello, {**hello, "do": "welcome"})


def test_a_worker_of_another_protocol_is_told_and_one_without_the_token_is_not() -> None:
    async def check() -> None:
        async with served() as at:
            assert (await at.join(protocol=framing.PROTOCOL + 1))[2]["do"] == "refuse"

    run(check())


def test_a_request_over_http_is_proved_once_and_for_one_body() -> None:
    now = [0.0]
    gate, caller = Gate(TOKEN, lambda: now[0]), Caller(TOKEN)

    def asks(body: bytes = b"", path: str = "/trials") -> str:
        return caller.authorization("POST", path, body)

    assert gate.admits(asks(), "POST", "/trials") is None, "a nonce is given first"
    assert caller.challenged(gate.challenge())
    said = asks(b"body")
    assert gate.admits(said, "POST", "/progress") is None
    assert gate.admits(said, "GET", "/trials") is None
    admitted = gate.admits(said, "POST", "/trials")
    assert admitted is not None
    assert admitted.holds(b"body")
    assert not admitted.holds(b"another")
    assert caller.believes(admitted.answer(200, b"said"), 200, b"said")
    assert not caller.believes(admitted.answer(200, b"said"), 200, b"forged")
    assert not caller.believes(admitted.answer(200, b"said"), 500, b"said")
    assert gate.admits(said, "POST", "/trials") is None, "nothing is heard twice"
    assert gate.admits(asks(), "POST", "/trials") is not None
    foreign = Caller(TOKEN)
    assert foreign.challenged(Gate(TOKEN).challenge())
    assert gate.admits(foreign.authorization("POST", "/trials"), "POST", "/trials") is None, "another server's nonce"
    assert Caller("wrong").challenged(gate.challenge())
    now[0] = NONCE_SECONDS + 1
    assert gate.admits(asks(), "POST", "/trials") is None
    assert caller.challenged(gate.challenge())
    assert gate.admits(asks(), "POST", "/trials") is not None
    assert len(gate._used) == 1, "what is over is forgotten"


def test_progress_is_for_who_proves_the_token_from_who_proves_it() -> None:
    async def check() -> None:
        async with served() as at:
            caller = Caller(TOKEN)
            for _ in range(3):
                assert (await at.ask(caller))["number"] == 1
            with pytest.raises(NotOurs):
                await at.ask(Caller("wrong"))

    run(check())


# What is said


@pytest.mark.parametrize("seed", range(3))
def test_odd_frames_close_their_connection_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)

    def line() -> bytes:
        match rng.randrange(6):
            case 0:
                return rng.randbytes(rng.randint(0, 200)) + b"\n"
            case 1:
                return rng.choice([b"x" * 300_000, b"[" * 20_000 + b"\n", b'{"is":' + b"9" * 6000 + b"}\n", b"{}\n"])
        frame = dict(rng.choice(SAID))
        for _ in range(rng.randint(1, 3)):
            frame[rng.choice([*frame, "extra"])] = rng.choice(ODD)
            if rng.random() < 0.2:
                frame.pop(rng.choice(list(frame)))
        return json.dumps(frame).encode() + b"\n"

    async def check() -> None:
        escaped: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
        async with served() as at:
            for number in range(150):
                _, writer, answer = await at.join(id=f"w{number % 7}")
                assert answer["do"] == "welcome"
                writer.writelines(line() for _ in range(rng.randint(1, 4)))
                with suppress(ConnectionError):
                    await writer.drain()
                await asyncio.sleep(0.001)
                writer.transport.abort()
            assert at.refused("error") == 0
            assert at.refused("odd") > 30
            assert (await at.ask())["number"] == 1
        assert escaped == []

    run(check())


def test_every_value_of_a_frame_is_bounded() -> None:
    for frame in SAID:
        FROM_WORKER.check(frame)
        for key in frame.keys() - {"is"}:
            for odd in (10**300, "x" * 100_000, [[]], {"a": {}}):
                try:
                    checked = FROM_WORKER.check({**frame, key: odd})
                except framing.BadFrame:
                    continue
                assert len(json.dumps(checked, allow_nan=False)) < 10_000
    with pytest.raises(framing.BadFrame, match="no frame is called"):
        FROM_WORKER.check({"is": ["hello"]})
    with pytest.raises(framing.BadFrame):
        FROM_COORDINATOR.check({"do": "form"})


def test_what_a_users_code_measures_closes_nothing() -> None:
    said = {"is": "report", "loss": float("nan"), "metrics": {f"m{n}": float(n) for n in range(600)}, "later": 1}
    said["metrics"] |= {"odd": float("inf"), "x" * 10_000: 1.0}
    checked = FROM_WORKER.check(said)
    assert checked["loss"] is None
    assert 0 < len(checked["metrics"]) <= 256
    assert "later" not in checked, "a newer release may say more"
    note = FROM_WORKER.check({"is": "note", "message": "\x1b[2J\ud800" + "x" * 10_000})["message"]
    assert len(note) <= 300
    assert note.encode().isascii()


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xfe\x00garbage\n",
        b"{}\n",
        b"[]\n",
        b'{"do":"form"}\n',
        b'{"do":"welcome","number":1}\n',
        b'{"do":"refuse","why":"go away"}\n',
        b'{"do":"challenge"}\n',
        b'{"do":"challenge","nonce":"' + b"\\ud800" * 20 + b'"}\n',
        b"x" * 500_000,
    ],
)
def test_a_worker_obeys_nobody_who_does_not_prove_himself_and_calls_again(said: bytes) -> None:
    with listening() as (server, control):
        connection, _ = server.accept()
        with closing(connection), suppress(ConnectionError):
            connection.sendall(said)
            assert TOKEN.encode() not in connection.recv(100_000)
        again = called(server)
        assert control.connected
        again.close()
        assert not control.arrived(0.0)


@pytest.mark.parametrize(
    "frame",
    [
        {"do": "plan"},
        {"do": "leave", "epoch": "x"},
        {"do": "leave", "epoch": 10**400},
        {"do": "adopt", "epoch": 1},
        {"do": "dance"},
        {"do": "form", "epoch": 1, "rank": 5, "peers": ["u"], "host": "h", "port": 1},
        {"do": "form", "epoch": 1, "rank": 0, "peers": ["another"], "host": "h", "port": 1},
        {"do": "welcome", "number": 9},
    ],
)
def test_an_odd_order_makes_a_worker_call_again(frame: framing.Frame) -> None:
    with listening() as (server, control):
        connection = called(server)
        connection.sendall(framing.encode(frame))
        again = called(server)
        assert not control.arrived(0.0)
        again.sendall(framing.encode({"do": "leave", "epoch": 3}))
        assert control.next() == {"do": "leave", "epoch": 3}


@contextmanager
def listening() -> Iterator[tuple[socket.socket, CoordinatorClient]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        yield server, CoordinatorClient(address, TOKEN, Identity("u", "w", "h", 1), SocketAbort())


def called(server: socket.socket) -> socket.socket:
    connection, _ = server.accept()
    connection.settimeout(20)
    receive(connection, TOKEN, {"do": "welcome", "number": 1})
    assert next(framing.frames(connection))["is"] == "beating"
    return connection


# Strangers


def test_silent_strangers_crowd_out_only_themselves() -> None:
    async def check() -> None:
        async with served() as at:
            held = []
            for port, count in ((at.control, 400), (at.web, 150)):
                for _ in range(count):
                    held.append(await asyncio.open_connection("127.0.0.1", port))
                    held[-1][1].write(b"G")
            assert (await at.join())[2]["do"] == "welcome"
            assert (await at.ask())["number"] == 1
            assert at.refused("crowded") >= 200
            assert at.refused("crowded", "http") >= 100
            for _, writer in held:
                writer.transport.abort()

    run(check())


def test_a_stranger_has_so_long_whatever_it_does_and_a_guest_as_long_as_it_likes() -> None:
    metrics = JobMetrics("ns", "job")
    ended = []

    async def serve(guest: Guest) -> None:
        try:
            if (await guest.reader.readexactly(1)) == b"a":
                guest.admit()
            await guest.reader.read()
        finally:
            ended.append(1)

    async def check() -> None:
        listener = Listener("test", serve, Bounds(8, 8, 0.3, 1000, 100), metrics.refusals)
        port = listener.open("127.0.0.1", 0)
        task = asyncio.create_task(listener.run())
        _, guest = await asyncio.open_connection("127.0.0.1", port)
        guest.write(b"a")
        reader, drip = await asyncio.open_connection("127.0.0.1", port)
        drip.write(b"b")
        with suppress(ConnectionError):
            while not reader.at_eof():
                drip.write(b"b")
                await asyncio.sleep(0.05)
                await drip.drain()
        assert len(ended) == 1
        guest.write(b"more")
        await guest.drain()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(check())


@pytest.mark.parametrize(
    "head",
    [
        b"POST /trials HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /trials HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"a" * 400_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nA: 1\r\nA: 2\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x00\xff" * 100 + b"\r\n\r\n",
        b'GET /progress HTTP/1.1\r\nAuthorization: Adaptrain nonce="", count="\xb2", proof="\xff"\r\n\r\n',
    ],
)
def test_an_odd_request_is_no_request(head: bytes) -> None:
    metrics = JobMetrics("ns", "job")
    told: list[int] = []

    async def progress() -> dict[str, Any]:
        return {}

    async def hear(body: bytes) -> None:
        told.append(len(body))

    port = http.serve("127.0.0.1", 0, metrics.registry, metrics.refusals, http.Pages(Gate(TOKEN), progress, hear))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock, suppress(ConnectionError):
        sock.sendall(head)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer == b"" or b" 401 " in answer.split(b"\r\n")[0]
    assert told == []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"adaptrain_job_step" in b"".join(iter(lambda: sock.recv(65536), b""))


def test_one_who_has_no_descriptor_left_goes_on_when_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = JobMetrics("ns", "job")

    async def serve(guest: Guest) -> None:
        guest.writer.write(b"hello")
        await guest.writer.drain()

    async def check() -> None:
        loop = asyncio.get_running_loop()
        accept, fails = loop.sock_accept, [OSError(24, "Too many open files")]

        async def scarce(sock: socket.socket) -> Any:
            if fails:
                raise fails.pop()
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", scarce)
        listener = Listener("test", serve, Bounds(8, 8, 5, 1000, 100), metrics.refusals)
        port = listener.open("127.0.0.1", 0)
        task = asyncio.create_task(listener.run())
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b"hello"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(check())


# Addresses


def test_everything_listens_on_both_families() -> None:
    async def check() -> None:
        async with served("") as at:
            for address in ("127.0.0.1", "::1"):
                for port in (at.control, at.web):
                    (await asyncio.open_connection(address, port))[1].transport.abort()

    run(check())
    with closing(listen_on("127.0.0.1", 0, 1)) as local:
        assert local.getsockname()[0] == "127.0.0.1"
    assert [listens_at(host) for host in ("127.0.0.1", "::1", "localhost", "10.0.0.7", "fd00::7")] == [
        *("127.0.0.1", "::1", "localhost"),
        "",
        "",
    ]
    for address in (("fd00::1", 1), ("10.0.0.1", 2), ("name", 3)):
        assert split(join(*address)) == address


def test_a_host_with_many_addresses_is_one_stranger() -> None:
    assert source("::ffff:10.0.0.1") == source("10.0.0.1") == "10.0.0.1"
    assert source("fd00::1:2:3:4") == source("fd00::9") != source("fd00:1::9")
    assert source("fe80::1%eth0") == "fe80::"


def test_the_operators_own_port_bounds_connections_and_serves_whoever_asks() -> None:
    async def check() -> None:
        runner = await health.serve("127.0.0.1", 0, lambda: None, lambda: "not yet")
        port = runner.addresses[0][1]
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3 * health.MOST)]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
        assert runner.server is not None
        assert len(runner.server.connections) <= health.MOST
        for _, writer in held:
            writer.transport.abort()
        await runner.cleanup()

    run(check())


def test_setting_the_machines_clock_moves_no_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clock.now()
    for step in (-3600.0, 3600.0):
        monkeypatch.setattr(time, "time", lambda step=step: before + step)
        assert 0 <= clock.now() - before < 60
