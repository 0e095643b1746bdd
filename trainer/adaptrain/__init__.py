"""adaptrain: elastic PyTorch training that goes on while its workers come and go.

::

    from adaptrain import Elastic
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptrain.elastic.script.elastic import Elastic as Elastic


def __getattr__(name: str) -> Any:
    # Not imported before somebody asks for it: the command line and the coordinator do without torch.
    if name == "Elastic":
        from adaptrain.elastic.script.elastic import Elastic

        return Elastic
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
