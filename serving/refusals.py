"""Answers that are not a prediction: why a request is refused, with its HTTP status and its gRPC code."""

from typing import ClassVar

from mlflywheel.errors import MlflywheelError

_SHOWN_CHARACTERS = 80
_SHOWN_KEYS = 5


class RefusalError(MlflywheelError):
    """A request that is not computed. The message says what was seen, what is needed and what to send."""

    http_status: ClassVar[int] = 400
    grpc_code: ClassVar[str] = "INVALID_ARGUMENT"
    #: Seconds until a repetition may succeed, None where it never will.
    retry_after_seconds: ClassVar[int | None] = None


class BadRequestError(RefusalError):
    """The request itself is wrong."""


class UnknownModelError(RefusalError):
    """No such model, or not in this version."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class UnknownPathError(RefusalError):
    """No such path."""

    http_status = 404
    grpc_code = "UNIMPLEMENTED"


class WrongMethodError(RefusalError):
    """The path takes another method."""

    http_status = 405
    grpc_code = "UNIMPLEMENTED"

    def __init__(self, where: str, seen: str, needed: str, fix: str, allowed: str = "GET") -> None:
        super().__init__(where, seen, needed, fix)
        self.allowed = allowed


class SlowBodyError(RefusalError):
    """The body did not arrive in time."""

    http_status = 408
    grpc_code = "DEADLINE_EXCEEDED"


class TooLargeError(RefusalError):
    """The body is larger than the server takes."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"


class UnknownEncodingError(RefusalError):
    """The body is compressed."""

    http_status = 415
    grpc_code = "INVALID_ARGUMENT"


class BusyError(RefusalError):
    """Too many requests wait already."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    retry_after_seconds = 1


class NotReadyError(RefusalError):
    """The model is not loaded yet, or the server is stopping."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    retry_after_seconds = 1


class GoneError(RefusalError):
    """The client closed the connection before its request was complete; the status is only logged."""

    http_status = 499
    grpc_code = "CANCELLED"


def describe(value: object) -> str:
    """Say what a JSON value is in a few words, however large or deep it is.

    >>> describe(["a", "b"]), describe({"a": 1}), describe(None), describe("x")
    ('a list of 2', 'an object with a', 'null', "the text 'x'")
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        keys = [str(key)[:_SHOWN_CHARACTERS] for key in list(value)[:_SHOWN_KEYS]]
        more = ", ..." if len(value) > _SHOWN_KEYS else ""
        return f"an object with {', '.join(keys)}{more}" if keys else "an empty object"
    if isinstance(value, str):
        shown = value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "..."
        return f"the text {shown!r}"
    text = repr(value)
    return f"the number {text}" if len(text) <= _SHOWN_CHARACTERS else f"the number {text[:_SHOWN_CHARACTERS]}..."
