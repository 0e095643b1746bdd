"""A worker's way to its coordinator: where others would meet it, its connection, and how it is asked to leave.

Nothing here imports torch, so a worker says hello before that: its imports, its data, the model and a first pass
overlap with what the others do. Nobody waits for it before it says that it is prepared.
"""

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from adaptrain_api.contracts.coordinator_api import Result

from adaptrain.elastic.membership.client import CoordinatorClient, GenerationState, Identity
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.process.result import exit_with, failed_result
from adaptrain.process.settings import WorkerSettings
from adaptrain.process.shutdown import ShutdownSignal
from adaptrain.rpc.framing import Frame
from adaptrain.rpc.ports import listen_on, listens_at

log = logging.getLogger(__name__)

STORE_BACKLOG = 512

Unneeded = Callable[[Frame], NoReturn]
Connect = Callable[[str, str, Identity, SocketAbort, Unneeded | None], GenerationState]


@dataclass(frozen=True)
class Arrival:
    """What a process of a worker has before its session."""

    control: GenerationState
    sockets: SocketAbort
    listening: socket.socket | None
    """Where an epoch's members meet, if this worker is its first. None of a follower: where a worker's lead meets
    others, all of its processes do."""


def arrive(
    told: WorkerSettings,
    farewell: ShutdownSignal | None,
    preparing: bool = False,
    connect: Connect = CoordinatorClient,
    leads: bool = True,
) -> Arrival:
    """Say hello to the coordinator, and go on saying it.

    Args:
        farewell: asks this worker to leave; None of a follower.
        preparing: until ``control.prepared()`` nobody waits for this worker, and it ends at once if it is asked to.

    Raises:
        OSError: no port can be opened.
    """

    def unneeded(order: Frame) -> NoReturn:
        if order["do"] == "refuse":
            log.error("%s", order["why"])
            exit_with(told, 1, failed_result(order["why"]))
        log.info("not prepared yet, and %s", "may go" if order["do"] == "go" else "training is complete")
        exit_with(told, 0, Result(outcome="left", step=0, epoch=0))

    listening = listen_on(listens_at(told.host), 0, STORE_BACKLOG) if leads else None
    sockets = SocketAbort()
    identity = Identity(told.id, told.name, told.host, listening.getsockname()[1] if listening is not None else 0)
    control = connect(told.coordinator, told.token, identity, sockets, unneeded if preparing else None)
    if farewell is not None:
        threading.Thread(target=_leave_after, args=(farewell, control), daemon=True, name="farewell").start()
    return Arrival(control, sockets, listening)


def _leave_after(farewell: ShutdownSignal, control: GenerationState) -> None:
    farewell.wait()
    log.info("asked to end")
    control.leave()
