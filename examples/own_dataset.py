"""A dataset of one's own: pictures, a JSON in LLaVA's form, and the manifest that tells datakit of them.

    python examples/own_dataset.py shapes

writes into the folder `shapes` what you would have already (photos/ and captions.json), and manifests/shapes.toml. With
DATAKIT_CATALOGUE=shapes every command knows the dataset: `datakit check shapes`, `datakit build-mix shapes --fetch`.
`datakit add shapes --json … --images …` writes such a manifest, too, from what it finds in your files.
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

# What a manifest must say. Files of one's own are named by full paths: file:///… for the JSON, /… for the pictures.
MANIFEST = """\
title    = "Shapes in two colours"
homepage = ""
licence  = "CC0-1.0"
citation = ""
hub      = ""                       # no repository: the files are here
reader   = "llava"                  # rows have `image` and `conversations`
recipe   = "inline"                 # list, fetch and pack, for pictures that are loose files

[annotations]
format         = "json"
files          = "{json}"
rows_per_shard = 5000               # what is made, and made again, at a time

[images]
by     = "folder"                   # `image` is a path below this folder
folder = "{photos}"
"""
COLOURS = ("red", "green", "blue", "orange", "purple", "black")


def main(folder: Path) -> None:
    """Draws twelve pictures, and writes what is said of them and where they are."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(12):
        colour, shape = COLOURS[number % 6], ("disc", "box")[number // 6]
        picture = Image.new("RGB", (160, 120), "white")
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape == "disc" else draw.rectangle)((40, 20, 120, 100), fill=colour)
        picture.save(photos / f"{number:02d}.png")
        # <image> is where the picture stands in the text. There is one mark for each picture.
        said = ("What is it?", f"A {colour} {shape}.")
        if number % 4 == 0:
            said = ("Is it a disc?", "Yes." if shape == "disc" else "No.")
        turns = [{"from": "human", "value": f"<image>\n{said[0]}"}, {"from": "gpt", "value": said[1]}]
        rows.append({"id": f"shape-{number}", "image": f"{number:02d}.png", "conversations": turns})
    annotations = folder / "captions.json"
    annotations.write_text(json.dumps(rows, indent=1))
    manifest = folder / "manifests" / "shapes.toml"  # the name of the file is the name of the dataset
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_text(MANIFEST.format(json=annotations.resolve().as_uri(), photos=photos.resolve()))
    print(f"{manifest}: {len(rows)} rows in {annotations}, pictures in {photos}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "shapes"))
