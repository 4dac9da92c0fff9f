"""Log lines: one JSON object a line on standard error, or text for a person.

A line about a request has its id, protocol, model, rows, status and milliseconds by phase, and never anything from its
content: terms and ids can be personal data. For the same reason the line about an unexpected exception has its type and
the places it passed, not its message.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflywheel.serving.predictor import Exchange

_LOG = logging.getLogger("mlflywheel.serving")
_PLACES_SHOWN = 12


def configure_logs(log_format: str) -> None:
    """Send all loggers to standard error in one form; kserve's, uvicorn's and others' from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _LOG.setLevel(logging.INFO)
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def log_event(event: str, **values: Any) -> None:
    """Log something that happened to the server: `loading`, `ready`, `draining`, `stopped`."""
    _LOG.info(event, extra={"values": {"event": event, **values}})


def log_warning(event: str, **values: Any) -> None:
    """Log something that a person should look at."""
    _LOG.warning(event, extra={"values": {"event": event, **values}})


def log_request(exchange: "Exchange", model: str, status: str, total_seconds: float, refusal: str | None) -> None:
    """Log one request.

    Args:
        exchange: The request.
        model: Name and version.
        status: HTTP status or gRPC code name.
        total_seconds: Its duration.
        refusal: Class of the refusal, None for an answer.
    """
    milliseconds = {phase: round(seconds * 1000, 3) for phase, seconds in exchange.seconds.items()}
    values = {
        "event": "request",
        "request_id": exchange.request_id,
        "protocol": exchange.protocol,
        "model": model,
        "rows": exchange.rows,
        "status": int(status) if status.isdigit() else status,
        "milliseconds": {**milliseconds, "total": round(total_seconds * 1000, 3)},
    }
    if refusal:
        values["refusal"] = refusal
    _LOG.info("request", extra={"values": values})


def log_defect(exchange: "Exchange", error: BaseException) -> None:
    """Log an unexpected exception: its type and where it passed, without its message."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    _LOG.error(
        "defect",
        extra={
            "values": {
                "event": "defect",
                "request_id": exchange.request_id,
                "protocol": exchange.protocol,
                "exception": type(error).__name__,
                "places": places[-_PLACES_SHOWN:],
            }
        },
    )


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = getattr(record, "values", None)
        if values is None:
            values = {"event": "log", "logger": record.name, "message": _describe(record)}
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps(
            {"time": moment.replace("+00:00", "Z"), "level": record.levelname.lower(), **values}, default=str
        )


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        values = getattr(record, "values", None)
        if values is None:
            return f"{moment} {record.levelname} {record.name}: {_describe(record)}"
        shown = " ".join(f"{key}={value}" for key, value in values.items() if key not in ("event", "milliseconds"))
        if "milliseconds" in values:
            shown += f" {values['milliseconds']['total']:.1f}ms"
        return f"{moment} {values['event']} {shown}"


def _describe(record: logging.LogRecord) -> str:
    """Return the message of another library's line, with the type of its exception only."""
    text = record.getMessage().splitlines()[0] if record.getMessage() else ""
    return f"{text} ({record.exc_info[0].__name__})" if record.exc_info and record.exc_info[0] else text
