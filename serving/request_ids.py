"""Ids of requests, which the client may choose, and which stand in the answer and in log lines."""

import re
from uuid import uuid4

_SAFE = re.compile(r"[\x21-\x7e]{1,128}")


def choose_request_id(sent: str | None) -> str:
    """Return the client's id if it can stand in a header and a log line, else a new one.

    >>> choose_request_id("a-1")
    'a-1'
    >>> len(choose_request_id("two words"))
    32
    """
    return sent if sent and _SAFE.fullmatch(sent) else uuid4().hex
