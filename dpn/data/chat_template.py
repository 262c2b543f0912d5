"""Conversation templates as Jinja chat templates for Hugging Face; equivalent to `render`."""

import json
from dataclasses import asdict

from dpn.data.conversation import IMAGE, ROLES, ROUTER, Template

_BODY = """
{%- macro words(message) -%}
  {%- if message.content is string -%}
    {{- message.content -}}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if part.type != "image" and part.text is not string -%}
        {{- raise_exception("a part of a turn is neither an image nor text.") -}}
      {%- endif -%}
      {{- image if part.type == "image" else part.text -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set chat = namespace(turns=[], images=false) -%}
{%- for message in messages -%}
  {%- set text = words(message) -%}
  {%- set human = chat.turns | length % 2 == 0 -%}
  {%- if roles[message.role] is not defined -%}
    {{- raise_exception("the role " ~ message.role ~ " is unknown.") -}}
  {%- elif loop.first and roles[message.role] == "assistant" -%}
    {%- continue -%}
  {%- elif (roles[message.role] == "human") != human -%}
    {{- raise_exception("two turns of one side follow each other; roles must alternate.") -}}
  {%- elif not (text if human else text.strip()) -%}
    {{- raise_exception("a turn is empty.") -}}
  {%- elif eos_token in text or router in text or image in text and not human -%}
    {{- raise_exception("a turn holds a reserved token; write it differently.") -}}
  {%- endif -%}
  {%- set chat.turns = chat.turns + [text] -%}
  {%- set chat.images = chat.images or image in text -%}
{%- endfor -%}
{{- style.system -}}
{%- for text in chat.turns -%}
  {%- if loop.index0 % 2 == 0 -%}
    {{- style.human -}}
    {%- set said = text.replace(image, "") if style.instruction else "" -%}
    {%- if image in text -%}
      {{- (style.mark * text.count(image) ~ said.strip()).rstrip() -}}
    {%- else -%}
      {{- said -}}
    {%- endif -%}
    {{- router if chat.images and with_router -}}
    {{- style.cue if add_generation_prompt or not loop.last -}}
  {%- else -%}
    {{- style.answer ~ text ~ style.end.replace("{eos}", eos_token) -}}
  {%- endif -%}
{%- endfor -%}
"""


def chat_template(style: Template, router: bool) -> str:
    """Return a Jinja chat template that gives the same text as `dpn.data.conversation.render`.

    The template does not write BOS, because the processor adds it to every prompt.

    Args:
        style: Conversation template to translate.
        router: Whether `<ROUTER>` ends every human turn of a sample with images.
    """
    values = {
        "style": asdict(style),
        "roles": ROLES,
        "image": IMAGE,
        "router": ROUTER,
        "with_router": router,
    }
    head = [f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in values.items()]
    return "\n".join(head) + _BODY
