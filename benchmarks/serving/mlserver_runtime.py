"""Our model in MLServer. Runs in an environment with MLServer and without kserve.

Requests are read, and answers are written, by the functions that our own predictor uses for V2, so what differs is the
server around them.
"""

from pathlib import Path

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from mlflywheel.models.contract import load_model
from mlflywheel.serving.tensors import Tensor, encode_output, list_inputs, list_outputs, to_instances

_MAX_ROWS = 1000


class CampaignRuntime(MLModel):
    """A saved model, loaded from the folder in `parameters.uri`."""

    async def load(self) -> bool:
        """Load the model, and let it answer its example."""
        parameters = self.settings.parameters
        assert parameters is not None
        assert parameters.uri is not None
        self._model = load_model(Path(parameters.uri))
        self._inputs = list_inputs(self._model.Request)
        example = self._model.Request.model_validate(self._model.example_request())
        self._outputs = list_outputs(self._model.predict(self._model.to_table([example])).schema)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a V2 request."""
        tensors = [
            Tensor(item.name, str(item.datatype), tuple(item.shape), list(item.data.root)) for item in payload.inputs
        ]
        instances = to_instances(tensors, self._inputs, _MAX_ROWS)
        checked = [self._model.Request.model_validate(instance) for instance in instances]
        predicted = self._model.predict(self._model.to_table(checked))
        outputs = []
        for output in self._outputs:
            encoded = encode_output(predicted[output.name], output)
            data = encoded.data if isinstance(encoded.data, list) else encoded.data.reshape(-1).tolist()
            outputs.append(
                ResponseOutput(name=output.name, shape=list(encoded.shape), datatype=output.datatype, data=data)
            )
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)
