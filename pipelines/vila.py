"""VILA (arXiv:2312.07533): align, pretrain on web pairs and interleaved documents, then instructions with plain text.

In order: `align` trains the projector on CC3M 595K; `pretrain` projector and language model on 25 million pairs of COYO
and the documents of MMC4-core; `sft` both on a million rows of FLAN, the 14 sets of M3IT that upstream takes,
and ShareGPT4V's mix in VILA's cut, 738K, in which LLaVA-1.5's is contained. A mix of VILA-1.0 is all of its sets
once each, without weights (llava/data/datasets_mixture.py).

Differs from the guide and its scripts (data_prepare/ of NVlabs/VILA), and why:
- CC3M: chat.json is taken from resolve/, not from the page that the guide links (docs/upstreams.md U1); pictures from
  its zip.
- MMC4-core is lost, and the form that gave access to it is of no use any more (U71). `--fallback` takes
  mmc4-core-ff in its place, the set without pictures that show faces. Nothing is replaced without being asked.
- 23,085 shards, not 23,098 - 14 (U72); by number, not by the alphabet (U73); no arguments that crash when left out
  (U74).
- Every URL has an outcome, what failed can be tried again, and a kill loses minutes (U22); no pickles, which run
  code when they are opened. No counts to copy by hand (U75), no tail to drop (U24).
- COYO: 25 million rows are fetched, not the 149.4 million of which upstream's scripts keep the pictures and its
  training uses 25: which 25 is our reading (U38), as the recipe `coyo25m` says. Ties, order and floor as in
  `coyo_vila`.
- Pictures of COYO and MMC4 have VILA's sizes to the pixel, by another filter: SSIM 0.97, see `coyo_vila`.
- MMC4: a picture stands before the sentence of its `matched_text_index`, as in VILA's loader; before the one that the
  similarity matrix gives it only where a document lacks these.
- FLAN: the stride is whole numbers; upstream's float32 has uneven steps and can run past the end (U40). Only the row
  groups that hold a chosen row are read, where upstream has 378 million strings in memory (U41) and downloads 70 GB of
  unused JSON (U39).
- M3IT: its JSON Lines are read, not its loader script, which new `datasets` refuse (U61); a line break stands between
  instruction and input, which upstream glues (U63; `m3it_glued` is upstream's form). Visual dialogues are turns.
- ShareGPT4V has its own folder, not COYO's (U91). The names of upstream's mixtures that don't exist (U26) are not
  needed. The copy that VILA cleaned is taken as it is; `sharegpt4v` has our rules for the original.
- A document with a dead picture is dropped whole, as upstream does (U76); `mmc4_keep` has the other policy.
"""

from datakit.engine.pipeline import like
from datakit.engine.stage import Step
from datakit.stages.fetch import Fetch
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack
from datakit.stages.sampled_listing import SampledListing

SOURCE = "NVlabs/VILA data_prepare/"

DOCUMENTS = (
    Step(name="list", stage=Listing()),
    # SOURCE mmc4/mmc4_downloader.py: shorter side > 336 becomes 336, the other int() of it, JPEG of Pillow's quality
    # 75. Documents with a dead picture count: half of them are usual (mmc4 issue 14, and rot since); 90 % is a network
    # down.
    Step(name="fetch", stage=Fetch(max_short_side_px=336, quality=75, rounding="down"), tolerates=0.9),
    Step(name="pack", stage=Pack(missing="drop_sample")),  # SOURCE mmc4/mmc4_filter_and_counter.py: all or nothing
)

STEPS = {
    "coyo": like("coyo25m"),
    "mmc4_core": DOCUMENTS,
    "mmc4": DOCUMENTS,
    # SOURCE sft/preprocess_flan.py: 1M of about 378M
    "flan": like("instruct", Step(name="list", stage=SampledListing(n_rows=1_000_000))),
    "m3it": like("inline", Step(name="list", stage=Listing(separator="\n"))),
    "sharegpt4v_vila": like("instruct"),
}

MIXES = {
    "align": "cc3m595k",
    "pretrain": "coyo+mmc4_core",
    "sft": "flan+m3it+sharegpt4v_vila.sft",
}

# TRAINING, by phase, comes here with the trainer's recipes. Upstream's loader takes the first six pictures of a
# document, and every second of the eight frames of a video (llava/data/dataset.py); what is packed has all of them.
