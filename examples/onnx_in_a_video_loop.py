"""An exported model frame by frame, without sgsfa and PyTorch: onnx_in_a_video_loop.py MODEL.onnx CROPS.

Export the model with `sgsfa export --single-vector --out MODEL.onnx`. CROPS is a folder of crops in time order.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SAME_PERSON = 0.6
"""Cosine similarity from which two crops count as the same person; choose it on data of your own."""


def main(model: str, crops: str) -> None:
    """Give every crop the number of the known person that it resembles most, or a new number."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    height, width = session.get_inputs()[0].shape[2:]
    known: list[np.ndarray] = []
    for path in sorted(Path(crops).iterdir()):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        pixels = np.zeros((height, width, 3), np.float32)
        ratio = image.shape[0] / image.shape[1] / 2
        ratio = 1 if 0.8 <= ratio <= 1.5 else ratio  # others are padded
        rows, columns = round(height * min(ratio, 1)), round(width * min(1 / ratio, 1))
        left = (width - columns) // 2
        pixels[:rows, left : left + columns] = (cv2.resize(image, (columns, rows)) / 255.0 - MEAN) / STD
        (vector,) = session.run(None, {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})[0]
        similarities = np.array([vector @ other for other in known]) if known else np.array([-1.0])
        number = int(similarities.argmax()) if similarities.max() >= SAME_PERSON else len(known)
        if number == len(known):
            known.append(vector)
        print(f"{path.name}: person {number}, similarity {similarities.max():.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
