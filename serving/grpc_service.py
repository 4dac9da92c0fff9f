"""gRPC: kserve's service with decoding, errors, limits, logs and metrics of our own.

A message that is larger than the limit is refused by gRPC itself (RESOURCE_EXHAUSTED) before it gets here, so it is in
neither log nor metrics. Messages arrive as bytes: gRPC would answer what it cannot parse with UNKNOWN, which says that
the server failed.
"""

import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages

from mlflywheel.errors import DataError, UsageError
from mlflywheel.serving.kserve_model import Call, ModelDataPlane, ServedModel
from mlflywheel.serving.logs import log_defect, log_request
from mlflywheel.serving.metrics import observe
from mlflywheel.serving.predictor import Exchange
from mlflywheel.serving.refusals import BadRequestError, RefusalError
from mlflywheel.serving.request_ids import choose_request_id

_CONTROL = re.compile(r"[\x00-\x1f]")
_SERVICE = "inference.GRPCInferenceService"
_METHODS = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")


class InferenceService:
    """The Open Inference Protocol over gRPC. Requests are bytes.

    Args:
        plane: Health and metadata.
        model: The model.
    """

    def __init__(self, plane: ModelDataPlane, model: ServedModel) -> None:
        self._plane = plane
        self._model = model

    async def ServerLive(self, data: bytes, context: Any) -> Any:
        """Say that the process answers."""
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, data: bytes, context: Any) -> Any:
        """Say whether the model is ready."""
        return messages.ServerReadyResponse(ready=await self._plane.ready())

    async def ServerMetadata(self, data: bytes, context: Any) -> Any:
        """Return name, version and extensions."""
        return messages.ServerMetadataResponse(**self._plane.metadata())

    async def ModelReady(self, data: bytes, context: Any) -> Any:
        """Say whether the model is ready."""
        request = await self._refuse_or(context, lambda: _parse(messages.ModelReadyRequest, data))
        if request.name == self._model.name and self._model.predictor is None:
            return messages.ModelReadyResponse(ready=False)
        await self._refuse_or(context, lambda: self._model.require(request.name, request.version))
        return messages.ModelReadyResponse(ready=await self._plane.ready())

    async def ModelMetadata(self, data: bytes, context: Any) -> Any:
        """Return the model's inputs and outputs."""
        request = await self._refuse_or(context, lambda: _parse(messages.ModelMetadataRequest, data))
        predictor = await self._refuse_or(context, lambda: self._model.require(request.name, request.version))
        return messages.ModelMetadataResponse(**predictor.list_metadata())

    async def ModelInfer(self, data: bytes, context: Any) -> Any:
        """Answer a request."""
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        exchange = Exchange("grpc", choose_request_id(headers.get("x-request-id")))
        code, text, refusal, answer = "OK", "", None, None
        try:
            await context.send_initial_metadata((("x-request-id", exchange.request_id),))
            request = _parse(messages.ModelInferRequest, data)
            predictor = self._model.require(request.model_name, request.model_version)
            call = Call(exchange, lambda: predictor.answer_grpc(request, exchange))
            answer, _ = await self._model(call, headers)
        except RefusalError as error:
            code, text, refusal = error.grpc_code, str(error), type(error).__name__
        except (DataError, UsageError) as error:
            code, text, refusal = "INVALID_ARGUMENT", str(error), type(error).__name__
        except Exception as error:
            code, text, refusal = "INTERNAL", f"internal error of request {exchange.request_id}", type(error).__name__
            log_defect(exchange, error)
        finally:
            # Also when the client gives up, which arrives as a cancellation.
            if answer is None and code == "OK":
                code = "CANCELLED"
            total_seconds = time.perf_counter() - exchange.started
            observe(exchange, code, total_seconds)
            log_request(exchange, self._model.name, code, total_seconds, refusal)
        if answer is None:
            await context.abort(getattr(grpc.StatusCode, code), _CONTROL.sub(" ", text))
        return answer

    async def _refuse_or(self, context: Any, find: Callable[[], Any]) -> Any:
        try:
            return find()
        except RefusalError as error:
            abort: Awaitable[Any] = context.abort(getattr(grpc.StatusCode, error.grpc_code), str(error))
            return await abort


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except Exception:
        # protobuf's DecodeError; nothing but parsing happens here.
        raise BadRequestError(
            "message",
            f"not a {kind.DESCRIPTOR.name}",
            "a message of the Open Inference Protocol is needed",
            "generate the client from the protocol's proto file",
        ) from None


class GrpcServer:
    """A gRPC server around the service.

    Args:
        service: What it serves.
        address: Host and port.
        max_request_bytes: Largest message.
        shared: Whether other workers listen on the same port.
    """

    def __init__(self, service: InferenceService, address: str, max_request_bytes: int, *, shared: bool) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_request_bytes),
                # The number of rows bounds the answer already.
                ("grpc.max_send_message_length", -1),
                # Off, because two servers would share a port unnoticed.
                ("grpc.so_reuseport", int(shared)),
            ]
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(service, name), response_serializer=lambda message: message.SerializeToString()
            )
            for name in _METHODS
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self._address = address
        self.port = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            RuntimeError: The port is taken.
        """
        self.port = self._server.add_insecure_port(self._address)
        await self._server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new requests, and wait for running ones."""
        await self._server.stop(grace_seconds)
