"""A name server that takes its time, for the process of a server: `fake_server.CONSTANTS` puts it in place."""

import socket
import time
from typing import Any

_look_up = socket.getaddrinfo


def look_up_slowly(host: Any, *rest: Any, **options: Any) -> Any:
    """`socket.getaddrinfo` beside a name server that looks for names below `slow.test` for 20 seconds, in vain."""
    if str(host).endswith("slow.test"):
        time.sleep(20)
        raise socket.gaierror(socket.EAI_AGAIN, "the name server does not answer")
    return _look_up(host, *rest, **options)
