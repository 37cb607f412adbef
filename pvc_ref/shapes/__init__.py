"""The shapes world, which the bundled model was taught: endless labelled clips and images from a seed.

numpy, OpenCV and Pillow only: `import pvc_ref.shapes` loads no torch.
"""

from .camera import CLEAN, CONDITIONS, Camera
from .clips import FRAME_SIZE, HELD_OUT, TRAINING, Clip, make_clip
from .endless import WorldFrame, question_of, watch
from .questions import TOPICS, Question
from .truth import answer_to
from .world import Scene, Thing

__all__ = [
    "CLEAN",
    "CONDITIONS",
    "FRAME_SIZE",
    "HELD_OUT",
    "TOPICS",
    "TRAINING",
    "Camera",
    "Clip",
    "Question",
    "Scene",
    "Thing",
    "WorldFrame",
    "answer_to",
    "make_clip",
    "question_of",
    "watch",
]
