"""LLaVA's conversations as chat templates: the same text, character by character, as the original code writes."""

_SYSTEM = (
    "A chat between a curious {asker} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {asker}'s questions."
)
CONVERSATIONS = {
    "vicuna_v1": _SYSTEM.format(asker="user"),  # training of LLaVA 1.x on Vicuna v1, and LLaVA-1.5
    "llava_v1": _SYSTEM.format(asker="human"),  # the published ScienceQA evaluation
}

_TEMPLATE = """\
{%- macro show(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content if part.type == 'image' -%}{{ 'IMAGE\\n' }}{%- endfor -%}
{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0].role == 'system' -%}
{%- set system, turns = show(messages[0].content), messages[1:] -%}
{%- else -%}
{%- set system, turns = "SYSTEM", messages -%}
{%- endif -%}
{{ system + ' ' }}
{%- for turn in turns -%}
{%- if turn.role == 'user' -%}{{ 'USER: ' + show(turn.content) + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + show(turn.content) + '</s>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def chat_template(conversation: str, start_end_tokens: bool = False) -> str:
    """Write a conversation as a Jinja template for a processor; images come before the text of their turn.

    Args:
        conversation: ``vicuna_v1`` or ``llava_v1``; they differ in one word of the system prompt.
        start_end_tokens: enclose every image in ``<im_start>`` and ``<im_end>``.
    """
    if conversation not in CONVERSATIONS:
        raise ValueError(f"unknown conversation {conversation!r}; known: {', '.join(CONVERSATIONS)}")
    image = "<im_start><image><im_end>" if start_end_tokens else "<image>"
    return _TEMPLATE.replace("SYSTEM", CONVERSATIONS[conversation]).replace("IMAGE", image)
