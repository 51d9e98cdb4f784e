"""MMC4 documents that keep what is left of their pictures.

VILA's scripts drop a whole document for one dead picture (the steps of `vila`): with 85 % of the pictures alive and
four of them, every second document goes. Here only the picture goes: its row of the similarity matrix is left out
and the sentences are matched again; of a document without a matrix, the others stay where they are. A document without
any picture left is dropped.
"""

from datakit.pipeline import like
from datakit.stage import Step
from datakit.stages.pack import Pack

STEPS = {"mmc4": like("vila", Step(name="pack", stage=Pack(missing="drop_image")))}
