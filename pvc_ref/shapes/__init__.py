"""The shapes world, on which the bundled model was trained: endless labelled clips and images from a seed.

It needs only numpy, OpenCV and Pillow: `import pvc_ref.shapes` does not load torch.
"""

from .camera import CLEAN, CONDITIONS, Camera
from .clips import HELD_OUT, TRAINING, Clip, make_clip
from .endless import WorldFrame, question_of, watch
from .questions import Question
from .truth import answer_to
from .world import Scene, Thing

__all__ = [
    "CLEAN",
    "CONDITIONS",
    "HELD_OUT",
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
