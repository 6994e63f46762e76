"""A person drawn with plain shapes."""

from __future__ import annotations

import cv2
import numpy as np


def figure() -> np.ndarray:
    """A person drawn with plain shapes before a grey wall: (256, 128, 3) uint8, RGB."""
    image = np.full((256, 128, 3), 170, np.uint8)
    image[200:] = 130
    cv2.rectangle(image, (45, 115), (62, 228), (40, 50, 90), -1)
    cv2.rectangle(image, (66, 115), (83, 228), (40, 50, 90), -1)
    cv2.rectangle(image, (42, 52), (86, 125), (150, 40, 45), -1)
    cv2.rectangle(image, (30, 55), (41, 120), (150, 40, 45), -1)
    cv2.rectangle(image, (87, 55), (98, 120), (150, 40, 45), -1)
    cv2.rectangle(image, (58, 40), (70, 54), (205, 160, 130), -1)
    cv2.ellipse(image, (64, 32), (12, 16), 0, 0, 360, (215, 170, 140), -1)
    cv2.ellipse(image, (64, 24), (14, 12), 0, 180, 360, (50, 35, 25), -1)
    cv2.ellipse(image, (50, 233), (13, 8), 0, 0, 360, (20, 20, 20), -1)
    cv2.ellipse(image, (78, 233), (13, 8), 0, 0, 360, (20, 20, 20), -1)
    return cv2.GaussianBlur(image, (0, 0), 1.2)
