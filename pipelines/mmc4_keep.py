"""MMC4 (arXiv:2304.06939) with documents that keep what is left of their pictures.

VILA's scripts, and so the recipe `vila`, drop a whole document for one dead picture (docs/upstreams.md U76): where 85
% of the pictures are alive, that is every second document of four pictures. Here only the dead picture goes: its row
of the similarity matrix is left out and the sentences are matched again; in a document without a matrix the other
pictures stay where they are. A document that lost all of its pictures is dropped. The rest is as in `vila`.
"""

from datakit.engine.pipeline import like
from datakit.engine.stage import Step
from datakit.stages.pack import Pack

STEPS = {"mmc4": like("vila", Step(name="pack", stage=Pack(missing="drop_image")))}
