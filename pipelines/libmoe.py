"""LibMoE (arXiv:2411.00918): mixtures of experts upcycled from a dense model, on LLaVA's and ALLaVA's data.

In order: `pretrain` trains the projector on 558K captions; `prefinetune` the whole dense model on ALLaVA's captions,
708,140 of them; `finetune` the experts on LLaVA-332K, the half of the 665K mix that LibMoE publishes. Its later
version takes the full mix: `datakit build-mix --fetch llava665k`. For a half whose rule is known, use
`datakit build-mix --fetch llava665k --recipe llava_half`. Every dataset is made by its manifest's own recipe,
`instruct`.

Differs from the guide: files keep their names, no `?download=true` in them (docs/upstreams.md U12); nothing is fetched
twice (U13); TextVQA's pictures are found under textvqa/train_images, as the JSON says (U14); no shell line with a stray
blank after its backslash to mend (U15), and no second layout of folders for the scripts (U16). The script of the second
phase reads the 332K by mistake (U17); this takes ALLaVA's captions, as the guide says. ALLaVA's own files stand for
CuMo's conversion of them, cumo_pft_allava.json (U18). A picture that can't be read drops its record, counted; the
scripts train on a black one in its place (U20). ALLaVA's archives are read when they are whole (U28), and at one commit
once they are pinned (U29).
"""

MIXES = {"pretrain": "llava558k", "prefinetune": "allava.captions", "finetune": "llava332k"}

# TRAINING, by phase, comes here with the trainer's recipes. The projector's phase uses the chat template phi35
# there, not LLaVA's plain one (docs/upstreams.md U19).
