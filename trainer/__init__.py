"""A thin trainer for vision-language models: a mix goes in, a Llava model comes out.

`train` is the command line. The path of a sample, in numbered steps:

1. `config`   a recipe's numbers, as one frozen dataclass
2. `data`     positions of the mix's endless order, shared between processes and micro batches
3. `chat`     messages to token ids and labels, by one of the `templates`, Jinja with generation marks
4. `batch`    pictures to pixels, samples to padded tensors
5. `model`    transformers' Llava classes and what of them is trained
6. `loop`     a token mean over the global batch, one log line per step, on the `processes` of a launcher
7. `resume`   checkpoints, published whole; going on where one ended, on any number of processes. What lies
              where under --out is said in `folder`
"""
