"""The tiny image-text model of the demo, as it ships: a LLaVA of 1.7 million parameters that was trained on scenes.

`examples/train_demo_model.py` made it. With ``weights = "random"`` its configuration and processor serve an untrained
model too.
"""

from pathlib import Path

DEMO_MODEL = Path(__file__).parent / "demo_llava"
"""Folder of the model, as transformers saves it."""

WEIGHTS = "model.safetensors"
"""Its weights, bfloat16, in that folder."""
