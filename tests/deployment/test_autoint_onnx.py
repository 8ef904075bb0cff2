import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="the extra flambeau[onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra flambeau[onnx] is not installed")

from flambeau.data.clicks.fields import Field, FieldSchema  # noqa: E402
from flambeau.deployment.autoint_onnx import export_autoint_onnx  # noqa: E402
from flambeau.models.tabular import AutoIntPlus, DeepFM  # noqa: E402

ROWS = {
    "city": ["a", "b", "c", "a", None] * 3,
    "price": [1.0, 2.0, -1.0, None, 5.0] * 3,
    "tags": [["x"], ["x", "y"], [], ["y"], ["z", "x"]] * 3,
}
SCHEMA = FieldSchema.fit(ROWS, [Field("city", dim=4), Field("price", "numeric"), Field("tags", "set", members=3)])


@pytest.mark.parametrize("model", [AutoIntPlus, DeepFM])
def test_equals_torch(model, tmp_path):
    torch.manual_seed(0)
    net = model(SCHEMA)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    export_autoint_onnx(net, SCHEMA, tmp_path / "clicks.onnx", logit_offset=-1.5)
    assert net.training
    schema = FieldSchema.load(tmp_path / "clicks.schema.json")
    ids, values = schema.encode(ROWS)
    session = onnxruntime.InferenceSession(tmp_path / "clicks.onnx", providers=["CPUExecutionProvider"])
    for rows in (15, 1):
        logits, probability = session.run(None, {"ids": ids[:rows].numpy(), "values": values[:rows].numpy()})
        with torch.no_grad():
            expected = net.eval()(ids[:rows], values[:rows]) - 1.5
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        np.testing.assert_allclose(probability, expected.sigmoid(), atol=1e-5)
        net.train()
