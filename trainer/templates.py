"""Templates: how a conversation is laid out as text, in Jinja, with marks around what is learned."""

from __future__ import annotations

# LLaVA conversation.py, conv_vicuna_v1. One picture of a user's message goes to its front (LLaVA,
# preprocess_multimodal); several stay where they are (VILA), each with a line end behind it.
_V1 = """\
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list | length > 0 -%}
{%- if asked -%}
  {%- if messages[0].role == 'system' -%}
    {{- messages[0].content | map(attribute='text') | join -}}
  {%- else -%}
    {{- "A chat between a curious user and an artificial intelligence assistant. " -}}
    {{- "The assistant gives helpful, detailed, and polite answers to the user's questions." -}}
  {%- endif -%}
  {{- ' ' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set n_images = message.content | selectattr('type', 'equalto', 'image') | list | length -%}
  {%- if message.role == 'user' -%}
    {%- set said = namespace(text='<image>\\n' if n_images == 1 else '') -%}
    {%- for part in message.content -%}
      {%- if part.type == 'text' -%}
        {%- set said.text = said.text + (part.text | trim if n_images else part.text) -%}
      {%- elif n_images > 1 -%}
        {%- set said.text = said.text + '<image>\\n' -%}
      {%- endif -%}
    {%- endfor -%}
    {{- 'USER: ' + (said.text | trim if n_images else said.text) + ' ' -}}
  {%- elif message.role == 'assistant' -%}
    {%- if asked -%}{{- 'ASSISTANT:' -}}{%- endif -%}
    {%- generation -%}
    {%- if asked -%}{{- ' ' -}}{%- endif -%}
    {%- for part in message.content -%}{{- '<image>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {{- '</s>' -}}
    {%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""

# LLaVA train.py, preprocess_plain: pictures, then the caption and a line end; what a user asked is left out.
_PLAIN = """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {%- generation -%}
    {%- for part in message.content -%}{{- '<image>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {{- '\\n' -}}
    {%- endgeneration -%}
  {%- else -%}
    {%- for part in message.content if part.type == 'image' -%}{{- '<image>' -}}{%- endfor -%}
  {%- endif -%}
{%- endfor -%}
"""

TEMPLATES = {"v1": _V1, "plain": _PLAIN}
