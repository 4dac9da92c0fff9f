"""ML Metadata's service over gRPC, for its C++ store on SQLite: `metadata_server.py ADDRESS DATABASE`.

Stands in for `metadata_store_server`, which needs Bazel to be built. The store and its answers are the real ones, from
the wheel `ml-metadata`, whose bindings take and give the service's messages as bytes; only the transport is written
here. Runs in an environment of its own: that wheel wants another protobuf than kfp.
"""

import sys
import threading
from concurrent import futures

import grpc
from ml_metadata.metadata_store.pywrap.metadata_store_extension import metadata_store
from ml_metadata.proto import metadata_store_pb2

_SERVICE = "ml_metadata.MetadataStoreService"
_ABORTED = grpc.StatusCode.ABORTED.value[0]
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _Service(grpc.GenericRpcHandler):
    def __init__(self, database: str) -> None:
        config = metadata_store_pb2.ConnectionConfig()
        config.sqlite.filename_uri = database
        migration = metadata_store_pb2.MigrationOptions()
        self._store = metadata_store.CreateMetadataStore(config.SerializeToString(), migration.SerializeToString())
        self._turn = threading.Lock()

    def service(self, handler_call_details):
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        call = getattr(metadata_store, method, None)
        if service != _SERVICE or call is None:
            return None

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            for attempt in range(5):
                with self._turn:
                    response, message, code = call(self._store, request)
                if code != _ABORTED or attempt == 4:
                    break
            if code:
                context.abort(_CODES[code], message.decode() if isinstance(message, bytes) else message)
            return response

        return grpc.unary_unary_rpc_method_handler(answer)


if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[_Service(sys.argv[2])])
    server.add_insecure_port(sys.argv[1])
    server.start()
    server.wait_for_termination()
