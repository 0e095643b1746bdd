"""Logs as one JSON object per line, or as text for a person at a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime

from adaptrain_operator.settings import Settings


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if hasattr(record, "job"):
            line["job"] = str(record.job)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(_Json() if settings.log_format == "json" else logging.Formatter(text))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # Kopf tells each event of each object; what matters of that we tell ourselves.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    logging.getLogger("kopf.objects").setLevel(logging.ERROR)
