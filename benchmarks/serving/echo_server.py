"""A bare kserve model that returns the instances it was sent: what kserve's own server costs by itself.

python echo_server.py NAME HTTP_PORT
"""

import sys
from typing import Any


def main() -> None:
    """Serve until a signal comes."""
    name, port = sys.argv[1], int(sys.argv[2])
    # Importing kserve reads the command line.
    sys.argv = sys.argv[:1]
    from kserve import Model, ModelServer

    class Echo(Model):
        def __init__(self) -> None:
            super().__init__(name)
            self.ready = True

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return {"predictions": payload["instances"]}

    ModelServer(http_port=port, enable_grpc=False).start([Echo()])


if __name__ == "__main__":
    main()
