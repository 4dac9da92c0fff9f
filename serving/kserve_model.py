"""What KServe's own data plane sees: one model, its readiness and its metadata.

kserve gives the protocol: the data plane, the gRPC service and its messages, and the metrics that its dashboards read.
These parts of it are replaced, because a predictor that must not fail needs more (each was seen in version 0.21):

- `ModelServer.start` calls `Model.start`, which sets `ready` before anything was loaded.
- `ModelServer` stops being ready on SIGTERM by closing its port, and closes gRPC only after HTTP.
- `/v2/health/ready` is always true.
- `:predict` and `/infer` decode on the event loop, and answer malformed bodies with 500 or 422.
- Exceptions end the connection of the next request.
- Anybody may unload the model through `/v2/repository`.
- Several workers mix up `/metrics`, and only one process answers gRPC.
"""

from collections.abc import Callable
from typing import Any

from kserve import Model, ModelRepository
from kserve.protocol.dataplane import DataPlane

from mlflywheel import __version__
from mlflywheel.serving.limits import Pool
from mlflywheel.serving.predictor import Exchange, Predictor
from mlflywheel.serving.refusals import NotReadyError, UnknownModelError


class Call:
    """One request on its way through kserve's model.

    Args:
        exchange: What is measured.
        answer: Computes the answer; runs in a thread.
    """

    def __init__(self, exchange: Exchange, answer: Callable[[], Any]) -> None:
        self.exchange = exchange
        self.answer = answer


class ServedModel(Model):
    """The model in kserve's repository: ready once a predictor was loaded, and until the server stops.

    Args:
        name: Its name in requests.
        pool: Where it computes.
    """

    def __init__(self, name: str, pool: Pool) -> None:
        super().__init__(name)
        self.pool = pool
        self.predictor: Predictor | None = None
        self.draining = False

    def accept(self, predictor: Predictor) -> None:
        """Take a loaded predictor into service."""
        self.predictor = predictor
        self.ready = not self.draining

    def drain(self) -> None:
        """Stop being ready. Requests are still answered."""
        self.draining = True
        self.ready = False

    def load(self) -> bool:
        """Return whether it is loaded; kserve calls this for a model that is not ready, and cannot load it."""
        return bool(self.ready)

    def start(self) -> None:
        """Leave `ready` alone, which kserve's own `start` does not."""

    async def predict(
        self, payload: Call, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> Any:
        """Answer in a thread."""
        return await self.pool.run(payload.answer, payload.exchange)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the inputs as V2 metadata has them."""
        return [] if self.predictor is None else [declared.to_metadata() for declared in self.predictor.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return the outputs as V2 metadata has them."""
        return [] if self.predictor is None else [declared.to_metadata() for declared in self.predictor.outputs]

    def require(self, name: str, version: str | None) -> Predictor:
        """Return the predictor for a request.

        Raises:
            UnknownModelError: Another name or version is served here.
            NotReadyError: It is still being loaded.
        """
        if name != self.name:
            raise UnknownModelError(
                f"model {name[:100]!r}", "not served here", f"this server has {self.name}", f"ask for {self.name}"
            )
        if self.predictor is None:
            raise NotReadyError(f"model {name}", "still loading", "it must be ready", "repeat the request in a second")
        if version and version != self.predictor.version:
            raise UnknownModelError(
                f"version {version[:100]!r} of {name}",
                "not served here",
                f"this server has {self.predictor.version}",
                "ask for this version, or leave it out",
            )
        return self.predictor


class ModelDataPlane(DataPlane):
    """kserve's data plane for one model, whose readiness is the server's.

    Args:
        model: The model.
    """

    def __init__(self, model: ServedModel) -> None:
        repository = ModelRepository()
        repository.update(model)
        super().__init__(model_registry=repository)
        self._model = model

    async def ready(self) -> bool:
        """Return whether the model is ready; kserve itself always says yes."""
        return bool(self._model.ready)

    def metadata(self) -> dict[str, Any]:
        """Return the server's metadata, with the protocol's extensions that it has."""
        return {"name": "mlflywheel", "version": __version__, "extensions": ["binary_tensor_data"]}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Return the model's metadata, with its version and format."""
        return self._model.require(model_name, None).list_metadata()
