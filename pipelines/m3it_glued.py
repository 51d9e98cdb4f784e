"""M3IT (arXiv:2306.04387) with instruction and input glued together, as VILA's script does it.

NVlabs/VILA data_prepare/sft/preprocess_m3it.py joins them without any sign between (docs/upstreams.md U63), which runs
the last word of one into the first of the other. The recipe `vila` puts a line break there; this is upstream's form.
"""

from datakit.engine.pipeline import like
from datakit.engine.stage import Step
from datakit.stages.listing import Listing

STEPS = {"m3it": like("vila", Step(name="list", stage=Listing(separator="")))}
