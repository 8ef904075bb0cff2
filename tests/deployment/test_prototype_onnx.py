import pytest
import torch

from flambeau.deployment.prototype_onnx import export_prototype_onnx
from flambeau.models.prototype_net import PrototypeNet
from flambeau.models.vision.autoencoder import ConvDecoder, ConvEncoder


def test_onnx_runtime_gives_the_same_logits_and_distances(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is missing: pip install 'flambeau[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install 'flambeau[onnx]'")
    torch.manual_seed(0)
    shape, channels = (1, 8, 8), (4, 3)
    net = PrototypeNet(ConvEncoder(shape, channels), ConvDecoder(shape, channels), 3, 6)
    export_prototype_onnx(net, tmp_path / "net.onnx", torch.rand(2, *shape))
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(7, *shape)
    logits, distances = session.run(["logits", "distances"], {"x": x.numpy()})
    expected = net.classify(x)
    torch.testing.assert_close(torch.from_numpy(logits), expected[0].detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(distances), expected[1].detach(), rtol=1e-4, atol=1e-4)
    assert net.training


def test_one_example_is_refused(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is missing: pip install 'flambeau[onnx]'")
    shape, channels = (1, 8, 8), (4, 3)
    net = PrototypeNet(ConvEncoder(shape, channels), ConvDecoder(shape, channels), 3, 6)
    with pytest.raises(ValueError, match="example: got 1"):
        export_prototype_onnx(net, tmp_path / "net.onnx", torch.rand(1, *shape))
