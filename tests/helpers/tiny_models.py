"""Small stand-ins for human parsers and pictures of people, for tests of everything around them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

CLASSES = 20


def weights(seed: int = 0, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """A 4 x 4 convolution of stride 4 from RGB to label scores."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 0.4, (classes, 3, 4, 4)).astype(np.float32)
    bias = rng.normal(0, 0.5, classes).astype(np.float32)
    # Enough background that masks have a shape.
    bias[0] += 3
    return kernel, bias


def write_onnx(
    path: Path,
    *,
    seed: int = 0,
    size: tuple[int | str, int | str] = (64, 32),
    batch: int | str = "batch",
    argmax: bool = False,
    nhwc: bool = False,
    classes: int = CLASSES,
    extra_output: bool = False,
) -> Path:
    """Write the convolution as an ONNX model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel, bias = weights(seed, classes)
    height, width = size
    cells = [height // 4 if isinstance(height, int) else "h", width // 4 if isinstance(width, int) else "w"]
    nodes, source = [], "images"
    if nhwc:
        nodes.append(helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]))
        source = "planes"
    nodes.append(helper.make_node("Conv", [source, "kernel", "bias"], ["scores"], strides=[4, 4], kernel_shape=[4, 4]))
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes, *cells])]
    if argmax:
        nodes.append(helper.make_node("ArgMax", ["scores"], ["labels"], axis=1, keepdims=0))
        outputs = [helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, *cells])]
    if extra_output:
        nodes.append(helper.make_node("Identity", [source], ["edges"]))
        outputs.insert(0, helper.make_tensor_value_info("edges", TensorProto.FLOAT, [batch, 3, height, width]))
    shape = [batch, height, width, 3] if nhwc else [batch, 3, height, width]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def write_people(root: Path, count: int, *, size: tuple[int, int] = (64, 32), seed: int = 0) -> list[str]:
    """Write JPEGs of blurred blobs in two folders; returns their names, sorted."""
    rng = np.random.default_rng(seed)
    names = []
    for number in range(count):
        name = f"cam{number % 2}/{number:04d}.jpg"
        coarse = rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
        names.append(name)
    return sorted(names)
