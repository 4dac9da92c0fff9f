"""Masking of values that a report shows: enough to find the row, too little to identify a person."""

import math
import re
from datetime import date
from typing import Any

LONGEST_SHOWN = 60
# Longer than any address or number; the rest of a 10 MB cell is never looked at.
_LOOKED_AT = 1_000
# Seven digits make the shortest telephone number.
_TELEPHONE_DIGITS = 7

_ADDRESS = re.compile(r"([^\s@])[^\s@]*@\S*")
_DIGIT = re.compile(r"\d")
_WRITTEN_AS_TELEPHONE = re.compile(r"(?:\+|\(\d{2,4}\)|\b00)[\d ().\-/]{6,}\d|\b\d{3}[ .-]\d{3}[ .-]\d{4}\b")


def mask_value(value: Any) -> Any:
    """Mask one cell for a report.

    Text loses its e-mail addresses, and all its digits when there are enough of them for a telephone number; it is cut
    after 60 characters. Numbers, dates and truth values stay: they are measurements. What is not finite becomes text,
    so that the result is always a JSON value.

    >>> mask_value("write to jane.doe@example.com")
    'write to j***@***'
    >>> mask_value("call 415-555-0123")
    'call ###-###-####'
    >>> mask_value("iphone 15")
    'iphone 15'
    >>> mask_value(0.5)
    0.5
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # NumPy's float64 is a float too, and JSON holds neither it nor what is not finite.
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [mask_value(item) for item in value[:20]]
    if isinstance(value, dict):
        return {str(key): mask_value(item) for key, item in value.items()}
    if hasattr(value, "item"):
        return mask_value(value.item())
    text = str(value)
    head = _ADDRESS.sub(r"\1***@***", text[:_LOOKED_AT])
    if len(_DIGIT.findall(head)) >= _TELEPHONE_DIGITS:
        head = _DIGIT.sub("#", head)
    return _shorten(head, len(text))


def mask_identifier(value: Any) -> Any:
    """Mask an entity's id: digits stay, since the id must lead back to the row, unless it is written as a contact.

    >>> mask_identifier("campaign-20260131"), mask_identifier("jane@example.com"), mask_identifier("+1 415 555 0123")
    ('campaign-20260131', 'j***@***', '+# ### ### ####')
    """
    if not isinstance(value, str):
        return mask_value(value)
    head = _ADDRESS.sub(r"\1***@***", value[:_LOOKED_AT])
    head = _WRITTEN_AS_TELEPHONE.sub(lambda found: _DIGIT.sub("#", found.group()), head)
    return _shorten(head, len(value))


def _shorten(text: str, length: int) -> str:
    if len(text) <= LONGEST_SHOWN and length <= _LOOKED_AT:
        return text
    return f"{text[:LONGEST_SHOWN]}… ({length:,} characters)"
