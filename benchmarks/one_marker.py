"""A model of one marker from one of several: the marker's class embedding is added to the time embedding's bias, which is exact.

python benchmarks/one_marker.py OUT [--model ihc-small] [--marker Ki67]

Another marker's training can then begin with it: `miudiff reproduce ... --init OUT`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from miudiff.checkpoints import WEIGHTS
from miudiff.methods.model import model_folder
from miudiff.naming import SHIPPED

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=Path)
parser.add_argument("--model", default=SHIPPED)
parser.add_argument("--marker", default="Ki67")
arguments = parser.parse_args()

shutil.copytree(model_folder(arguments.model), arguments.out)
unet, index = arguments.out / "unet", arguments.out / "model_index.json"
about = json.loads(index.read_text())
weights = {name: value.float() for name, value in load_file(unet / WEIGHTS).items()}
embedding = weights.pop("class_embedding.weight")[about["markers"].index(arguments.marker)]
weights["time_embedding.linear_2.bias"] = weights["time_embedding.linear_2.bias"] + embedding
save_file(weights, unet / WEIGHTS)
config = json.loads((unet / "config.json").read_text()) | {"num_class_embeds": None}
(unet / "config.json").write_text(json.dumps(config, indent=2))
about["palette"] = {name: curve for name, curve in about["palette"].items() if name == arguments.marker}
about["markers"] = [arguments.marker]
index.write_text(json.dumps(about, indent=2))
