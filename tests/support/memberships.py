"""Groups of workers, in a line each."""

from adaptrain.elastic.membership.state_machine import Action, Membership, Send


def arrive(m: Membership, *ids: str, now: float = 0.0) -> list[Action]:
    actions: list[Action] = []
    for id in ids:
        actions += m.hello(now, id, id, "h", 1)
    return actions


def ready(m: Membership, *ids: str) -> list[Action]:
    actions: list[Action] = []
    for id in ids:
        actions += m.ready(0.0, id, m.epoch)
    return actions


def running(*ids: str, minimum: int = 1) -> Membership:
    m = Membership(1, minimum)
    arrive(m, *ids)
    ready(m, *ids)
    assert m.state == "running"
    return m


def frames(actions: list[Action]) -> dict[str, str]:
    return {a.to: a.frame["do"] for a in actions if isinstance(a, Send)}
