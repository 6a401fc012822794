# SPDX-License-Identifier: Apache-2.0
"""Draw ``examples/astronaut_trimap.png``, the trimap of scikit-image's ``astronaut()`` photograph.

The outline was traced by eye on the enlarged photograph. What lies within a few pixels of it is unknown
(128): ``BODY`` pixels on either side along suit, ring and helmet, ``HAIR`` pixels along the hair, whose
strands reach further out. The rest is background (0) outside and foreground (255) inside.

    python examples/draw_astronaut_trimap.py [OUT.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

SIZE = 512
BODY, HAIR = 8, 14

# (x, y) in pixels of the photograph, clockwise from the bottom left; the parts join end to end.
LEFT_ARM = [
    (40, 520), (37, 506), (30, 496), (25, 476), (23, 455), (24, 440), (22, 425), (20, 410), (19, 397), (21, 382),
    (25, 372), (25, 345), (29, 333), (33, 320), (40, 300), (44, 280), (52, 266), (60, 253), (68, 243), (78, 233),
    (92, 223), (100, 218), (108, 208),
]  # fmt: skip
LEFT_RING = [
    (112, 206), (114, 203), (113, 197), (115, 193), (113, 188), (116, 185), (120, 184), (123, 178), (125, 173),
    (130, 166), (136, 159), (143, 154), (152, 150), (162, 148), (175, 148), (184, 148), (183, 140), (182, 133),
]  # fmt: skip
HEAD = [
    (178, 132), (174, 127), (170, 119), (165, 114), (160, 108), (156, 101), (155, 90), (153, 80), (153, 70),
    (156, 62), (161, 54), (168, 47), (177, 40), (187, 36), (192, 31), (200, 24), (208, 20), (220, 18), (230, 15),
    (240, 16), (250, 19), (260, 22), (268, 27), (276, 33), (284, 37), (289, 44), (294, 52), (297, 62), (299, 72),
    (301, 84), (300, 95), (297, 106), (291, 115), (283, 123), (278, 130), (272, 136), (267, 137),
]  # fmt: skip
RIGHT_RING = [
    (266, 142), (263, 150), (259, 159), (256, 170), (256, 173), (262, 179), (270, 185), (280, 193), (290, 205),
    (298, 217), (302, 228), (304, 235),
]  # fmt: skip
RIGHT_ARM = [
    (318, 243), (326, 252), (336, 259), (342, 267), (346, 276), (349, 284), (352, 286), (355, 297), (358, 312),
    (360, 325), (363, 331), (361, 335), (362, 342), (366, 349),
]  # fmt: skip
HELMET = [
    (372, 347), (384, 345), (396, 343), (410, 344), (420, 346), (435, 350), (449, 357), (462, 366), (474, 377),
    (483, 390), (490, 404), (494, 420), (496, 436), (497, 448), (499, 455), (504, 457), (503, 461), (506, 467),
    (508, 478), (508, 485), (520, 490), (520, 520),
]  # fmt: skip


def near(points: list[tuple[int, int]], radius: int) -> np.ndarray:
    """Pixels at most ``radius`` away from the polyline, (512, 512) bool."""
    line = np.full((SIZE, SIZE), 255, np.uint8)
    cv2.polylines(line, [np.array(points, np.int32)], isClosed=False, color=0)
    return cv2.distanceTransform(line, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius


def draw() -> np.ndarray:
    """The trimap, (512, 512) uint8 with the levels 0, 128, 255."""
    outline = LEFT_ARM + LEFT_RING + HEAD + RIGHT_RING + RIGHT_ARM + HELMET
    trimap = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(trimap, [np.array(outline, np.int32)], 255)
    trimap[near(outline, BODY) | near(HEAD, HAIR)] = 128
    return trimap


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "astronaut_trimap.png")
    if not cv2.imwrite(target, draw()):
        sys.exit(f"cannot write {target}")
