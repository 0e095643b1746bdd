"""What a worker was told to do and has not begun yet. Pure: the worker runs it, and so do the tests' simulations."""

from collections import deque

from adaptrain.rpc.framing import Frame

LAST = ("go", "finish", "fail", "refuse")
"""After these a worker ends."""


class CommandQueue:
    """Orders in the order of their arrival, of which newer ones overtake older ones."""

    def __init__(self) -> None:
        self._waiting: deque[Frame] = deque()

    def put(self, frame: Frame) -> None:
        self._waiting.append(frame)

    def waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Frame | None:
        """The order to follow next; None if there is none. What others ask for that came before it is over."""
        if not self._waiting:
            return None
        frame = self._waiting.popleft()
        while self._waiting and frame["do"] not in LAST:
            # Others may wait in that group already, and they leave it together with this worker, at a step's end.
            if frame["do"] == "form" and self._waiting[0]["do"] == "plan":
                break
            frame = self._waiting.popleft()
        return frame
