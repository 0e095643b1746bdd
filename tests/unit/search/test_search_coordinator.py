"""A search's coordinator, with an evaluator that these tests play."""

import asyncio
from pathlib import Path

from adaptrain.rpc import framing
from adaptrain.search.coordinator import SearchCoordinator
from adaptrain.search.study.study import JOURNAL
from adaptrain_api.search.job import ArchitectureSearch

from tests.support.protocol import greet

SEARCH = ArchitectureSearch.model_validate(
    {
        "metadata": {"name": "digits"},
        "spec": {
            "space": {"parameters": [{"name": "width", "values": [8, 16]}]},
            "objectives": [{"metric": "score", "goal": "maximize"}],
            "budget": {"trials": 1},
            "trial": {"callable": "m:f"},
        },
    }
)


def test_a_search_ends_when_its_last_trial_is_written(tmp_path: Path) -> None:
    """Who hears of the end stops the coordinator: what is not written then would be lost."""

    async def search() -> None:
        coordinator = SearchCoordinator(1, "secret", SEARCH, tmp_path, None)
        ports: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serves = asyncio.create_task(coordinator.run("127.0.0.1", 0, 0, lambda control, _: ports.set_result(control)))
        reader, writer = await asyncio.open_connection("127.0.0.1", await ports, limit=framing.MAX_FRAME)

        async def hear(kind: str) -> framing.Frame:
            while (frame := await asyncio.wait_for(framing.read(reader), 20)) is not None:
                if frame["do"] == kind:
                    return frame
            raise AssertionError(f"it hung up, and said no {kind}")

        answer = await greet(reader, writer, "secret", {"id": "0", "name": "evaluator-0"})
        assert answer["do"] == "welcome"
        assert [member.idle for member in coordinator.progress().members] == [True]
        writer.write(framing.encode({"is": "ask"}))
        number = (await hear("try"))["trial"]
        progress = coordinator.progress()
        assert [member.idle for member in progress.members] == [False]
        assert progress.search is not None
        assert progress.search.evaluators == 1
        lock = tmp_path / f"{JOURNAL}.lock"
        lock.symlink_to(tmp_path / JOURNAL)  # another process writes to the journal for a while
        writer.write(framing.encode({"is": "tell", "trial": number, "state": "complete", "metrics": {"score": 1.0}}))
        writer.write(framing.encode({"is": "beat"}))
        await hear("beat")  # so the word before it was heard, too
        found = coordinator.progress().search
        assert found is not None
        assert (found.complete, found.end) == (1, None)
        lock.unlink()
        await hear("told")
        found = coordinator.progress().search
        assert found is not None
        assert found.end is not None
        serves.cancel()
        await asyncio.gather(serves, return_exceptions=True)

    asyncio.run(asyncio.wait_for(search(), 60))
