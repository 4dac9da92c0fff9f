"""Who decides: the name under which this process writes into histories."""

import getpass
import os
import socket


def name_this_user() -> str:
    """Return who runs this: the user and the host, or the pod."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
