"""Reading arrays and JSON of a saved model, as if somebody hostile had written them.

A model folder comes from a store that others write to, and its checksums only say that it is whole. Some arrays are
indices for compiled code, which does not check them: an index that leads out of an array would read or write somebody
else's memory there. So the kind, the shape and the size of every array are checked before it is read.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# NumPy writes its header in less; a longer one is parsed as Python text, which takes time and stack.
_LONGEST_HEADER_BYTES = 1000


def read_array(path: Path, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Read an npy file that holds exactly what is asked for.

    Args:
        path: The file.
        dtype: The type of its elements; never objects.
        shape: The size of each axis, None where any will do.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no npy file, holds another type or shape, or is shorter or longer than its header says.
    """
    wanted = np.dtype(dtype)
    with path.open("rb") as file:
        found_shape, found = _read_header(path, file)
        size = path.stat().st_size - file.tell()
        if found != wanted:
            raise ValueError(f"{path.name} holds {found}, and {wanted} is needed")
        fits = len(found_shape) == len(shape) and all(
            want is None or want == has for want, has in zip(shape, found_shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{path.name} has the shape {found_shape}, and {shape} is needed")
        # Before anything of that size is asked for.
        if math.prod(found_shape) * wanted.itemsize != size:
            raise ValueError(f"{path.name} holds {size} bytes of data, and its header says {found_shape} of {wanted}")
        file.seek(0)
        read: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False, max_header_size=_LONGEST_HEADER_BYTES)
    return read


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: It cannot be opened.
        ValueError: Not JSON, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None


def check_texts(values: Any, what: str) -> tuple[str, ...]:
    """Return a list of texts as a tuple.

    Raises:
        ValueError: It is not a list, or holds something else.

    >>> check_texts(["make", "fuel"], "categories")
    ('make', 'fuel')
    """
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"{what} is no list of texts")
    return tuple(values)


def _read_header(path: Path, file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_LONGEST_HEADER_BYTES)
    except Exception as error:
        # NumPy reads the header as Python source, and tokenizer, parser and dtype raise what they like.
        raise ValueError(f"{path.name} is no npy file ({type(error).__name__})") from None
    if dtype.hasobject:
        raise ValueError(f"{path.name} holds objects, and is read with allow_pickle=False")
    if any(size < 0 for size in shape):
        raise ValueError(f"{path.name} has the shape {shape}")
    return shape, dtype
