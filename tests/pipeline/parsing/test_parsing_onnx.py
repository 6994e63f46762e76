from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import ConfigError, DeviceError, FormatError, UserError, WeightsError
from pipeline.parsing import onnx as onnx_parser
from pipeline.parsing.files import sidecar_path
from pipeline.parsing.labels import load_label_set
from pipeline.parsing.onnx import OnnxParser, load_onnx
from pipeline.parsing.parser import load_parser
from pipeline.parsing.schp import SchpNet
from pipeline.parsing.sidecar import Sidecar, input_size_of, read_sidecar, to_soft
from pipeline.runtime.memory import out_of_memory
from tests.helpers.tiny_models import weights, write_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def reference(images: np.ndarray, **changes: object) -> torch.Tensor:
    """The tiny model in torch, on images prepared by hand."""
    values = (images / changes.get("scale", 255.0) - changes.get("mean", MEAN)) / changes.get("std", STD)
    if changes.get("bgr"):
        values = values[..., ::-1]
    kernel, bias = weights()
    planes = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(np.float32))
    return F.conv2d(planes, torch.from_numpy(kernel), torch.from_numpy(bias), stride=4)


def describe(model: Path, text: str) -> Path:
    sidecar_path(model).write_text(text)
    return model


def test_onnx_equals_torch(tmp_path: Path) -> None:
    parser = load_onnx(write_onnx(tmp_path / "m.onnx"), label_set="lip-20", device="cpu")
    soft = parser.parse(IMAGES)
    assert parser.input_size == (64, 32)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft, reference(IMAGES).softmax(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(parser.parse(torch.from_numpy(IMAGES)), soft)


def test_every_option_of_the_sidecar(tmp_path: Path) -> None:
    model = describe(
        write_onnx(tmp_path / "m.onnx", size=("h", "w"), nhwc=True, extra_output=True),
        'label_set = "lip-20"\nversion = "7"\nheight = 64\nwidth = 32\nfit = "square"\nlayout = "nhwc"\n'
        'colour = "bgr"\n'
        'scale = 1.0\nmean = [104, 117, 123]\nstd = [50, 60, 70]\noutput = "scores"\nactivation = "sigmoid"\n',
    )
    parser = load_parser(f"onnx:{model}", device="cpu")
    expected = reference(IMAGES, scale=1.0, mean=[104, 117, 123], std=[50, 60, 70], bgr=True).sigmoid()
    torch.testing.assert_close(parser.parse(IMAGES), expected, atol=1e-3, rtol=0)
    assert (parser.info.version, parser.info.fit) == ("7", "square")


def test_models_that_give_only_labels(tmp_path: Path) -> None:
    parser = load_onnx(write_onnx(tmp_path / "m.onnx", argmax=True), label_set="lip-20", device="cpu")
    soft = parser.parse(IMAGES)
    expected = reference(IMAGES).argmax(1)
    assert set(soft.unique().tolist()) == {0.0, 1.0}
    assert float((soft.argmax(1) == expected).float().mean()) > 0.99


def test_models_with_a_fixed_batch_take_any(tmp_path: Path) -> None:
    free = load_onnx(write_onnx(tmp_path / "free.onnx"), label_set="lip-20", device="cpu")
    fixed = load_onnx(write_onnx(tmp_path / "fixed.onnx", batch=2), label_set="lip-20", device="cpu")
    torch.testing.assert_close(fixed.parse(IMAGES), free.parse(IMAGES))


@pytest.mark.slow
def test_schp_as_onnx_equals_schp_in_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = SchpNet(7, width=4, blocks=(1, 1, 1, 1)).eval()
    for name, value in net.state_dict().items():
        if name.endswith("norm.weight") or value.ndim == 1:
            value.uniform_(-1, 1) if name.endswith("weight") else value.uniform_(0.2, 1)
    image = torch.randn(1, 3, 97, 97)
    try:
        torch.onnx.export(net, (image,), str(tmp_path / "schp.onnx"), verbose=False, dynamo=True)
    except Exception as error:
        pytest.skip(f"this torch cannot export: {error}")
    describe(tmp_path / "schp.onnx", 'label_set = "pascal-7"\ncolour = "bgr"\nfit = "square"\n')
    parser = load_onnx(tmp_path / "schp.onnx", device="cpu")
    images = np.random.default_rng(1).integers(0, 256, (2, 97, 97, 3), dtype=np.uint8)
    values = torch.from_numpy((images / 255.0 - MEAN) / STD).float().flip(3).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = net(values).softmax(1)
    torch.testing.assert_close(parser.parse(images), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no label set"),
        ('label_set = "lip-20"\ncolor = "bgr"', "unknown key 'color'"),
        ('label_set = "lip-20"\ncolour = "gbr"', "colour = 'gbr'"),
        ('label_set = "lip-20"\nmean = [1, 2]', "mean"),
        ('label_set = "lip-20"\nheight = 100', "height = 100, but the model's input has 64"),
        ('label_set = "lip-20"\noutput = "logits"', "no output 'logits'"),
        ('label_set = "lip"', "unknown label set 'lip'"),
    ],
)
def test_faulty_sidecars_are_refused(tmp_path: Path, text: str, found: str) -> None:
    model = describe(write_onnx(tmp_path / "m.onnx"), text)
    with pytest.raises(ConfigError, match=found):
        load_onnx(model, device="cpu")


def test_own_label_set_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text('classes = ["background", "body"]\nupper = ["body"]\n')
    model = describe(write_onnx(tmp_path / "m.onnx", classes=2), 'label_set = "two.toml"')
    assert load_onnx(model, device="cpu").info.label_set.name == "two"


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"shape \(1, 20, 16, 8\)"):
        load_onnx(write_onnx(tmp_path / "m.onnx"), label_set="atr-18", device="cpu")
    with pytest.raises(FormatError, match="label ids from 0 to 20"):
        to_soft(torch.tensor([[[0, 20]]]), Sidecar(), load_label_set("lip-20"), tmp_path)


def test_free_sizes_must_be_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="any height"):
        load_onnx(write_onnx(tmp_path / "m.onnx", size=("h", "w")), label_set="lip-20", device="cpu")
    assert input_size_of(Sidecar(height=8, width=16), tmp_path, (None, 16)) == (8, 16)


def test_missing_and_broken_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not found"):
        load_onnx(tmp_path / "m.onnx", device="cpu")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(WeightsError, match="text file"):
        load_onnx(tmp_path / "text.onnx", label_set="lip-20", device="cpu")


def test_load_onnx__newer_model_is_named_with_the_whole_message(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(write_onnx(tmp_path / "m.onnx"))
    model.ir_version = 99
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(WeightsError, match="newer than the installed ONNX Runtime") as caught:
        load_onnx(tmp_path / "m.onnx", label_set="lip-20", device="cpu")
    assert "99" in (caught.value.cause or "")
    assert caught.value.details()[-1][0] == "cause"


def test_load_onnx__channels_last_names_the_layout(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(write_onnx(tmp_path / "m.onnx"))
    shape = model.graph.input[0].type.tensor_type.shape
    sizes = [shape.dim[axis].dim_value for axis in (2, 3, 1)]
    for axis, size in enumerate(sizes, start=1):
        shape.dim[axis].dim_value = size
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError) as caught:
        load_onnx(tmp_path / "m.onnx", label_set="lip-20", device="cpu")
    assert 'layout = "nhwc"' in (caught.value.hint or "")


def test_load_onnx__outputs_are_listed_where_the_first_does_not_fit(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(write_onnx(tmp_path / "m.onnx"))
    first = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Shape", [first], ["size"]))
    model.graph.output.insert(0, onnx.helper.make_tensor_value_info("size", 7, [4]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(FormatError) as caught:
        load_onnx(tmp_path / "m.onnx", label_set="lip-20", device="cpu")
    assert "size [4]" in (caught.value.hint or "")
    assert first in (caught.value.hint or "")


def test_cuda_without_cuda_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(DeviceError):
        load_onnx(write_onnx(tmp_path / "m.onnx"), label_set="lip-20", device="cuda")


class GpuSession:
    """A session as ONNX Runtime's package for GPUs gives it; fails as it does where `fault` is set."""

    def __init__(self, model: Path) -> None:
        import onnxruntime

        self._real = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs
        self.fault = ""

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {"CUDAExecutionProvider": {"device_id": "2"}, "CPUExecutionProvider": {}}

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self.fault:
            raise Exception(self.fault)  # of no particular class
        outputs: list[np.ndarray] = self._real.run(names, feeds)
        return outputs


def test_a_session_on_a_gpu_says_so(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "m.onnx")
    gpu = OnnxParser(GpuSession(model), model, Sidecar(), load_label_set("lip-20"))
    assert gpu.parse(IMAGES).device.type == "cpu"
    assert gpu.info.device == "cuda:2"
    assert load_onnx(model, label_set="lip-20", device="cpu").info.device == "cpu"


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc:376 Failed to allocate memory for requested buffer",
        "CUDA failure 2: out of memory ; GPU=0",
    ],
)
def test_a_batch_too_large_for_the_gpu_can_be_told_from_other_faults(tmp_path: Path, text: str) -> None:
    model = write_onnx(tmp_path / "m.onnx")
    session = GpuSession(model)
    parser = OnnxParser(session, model, Sidecar(), load_label_set("lip-20"))
    session.fault = text
    with pytest.raises(Exception, match="memory") as raised:
        parser.parse(IMAGES)
    assert out_of_memory(raised.value)
    session.fault = "Non-zero status code returned while running Reshape node.\nMore."
    with pytest.raises(FormatError, match="3 images") as caught:
        parser.parse(IMAGES)
    assert caught.value.cause == session.fault
    assert "masks.batch_size=1" in (caught.value.hint or "")


def test_cuda_that_does_not_start_is_no_reason_to_use_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the package for GPUs does where the driver is too old: a message in the log, and a session without CUDA.
    monkeypatch.setattr(onnx_parser, "_providers", lambda device: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="cannot start on CUDA"):
        load_onnx(write_onnx(tmp_path / "m.onnx"), label_set="lip-20", device="cuda:0")


def test_without_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        load_onnx(tmp_path / "m.onnx")
    assert "pip install onnxruntime" in (caught.value.hint or "")


def test_no_sidecar_means_defaults(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "m.onnx") == Sidecar()
