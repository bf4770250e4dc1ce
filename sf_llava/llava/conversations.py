"""LLaVA's conversations as chat templates: the same text, character by character, as the original code writes."""

_SYSTEM = (
    "A chat between a curious {asker} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {asker}'s questions."
)
CONVERSATIONS = {
    "vicuna_v1": _SYSTEM.format(asker="user"),  # training of LLaVA 1.x on Vicuna v1, and LLaVA-1.5
    "llava_v1": _SYSTEM.format(asker="human"),  # the published ScienceQA evaluation
}

# Loops over ``messages`` and ``message.content`` in so many words: servers read off them that contents may be lists.
_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}{{ "SYSTEM" + ' ' }}{%- endif -%}
{%- for message in messages -%}
{%- set is_system = loop.first and message.role == 'system' -%}
{%- if not is_system -%}{{ 'USER: ' if message.role == 'user' else 'ASSISTANT: ' }}{%- endif -%}
{%- if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content if part.type == 'image' -%}{{ 'IMAGE\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{{ ' ' if is_system or message.role == 'user' else '</s>' }}
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
